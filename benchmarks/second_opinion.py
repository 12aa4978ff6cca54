"""The same free energies by three samplers: reweighted flattening, batched parallel tempering, openmmtools.

    python benchmarks/second_opinion.py [--evaluations 20000000] [--iterations 1500] [--seed 0]

Prints a table and writes it to benchmarks/results/second_opinion.txt. openmmtools runs on OpenMM itself, one
configuration at a time; its integrator, its swaps and its energy are not ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from boltzgen.diagnostics import Verdict
from boltzgen.energy import CompiledPotential
from boltzgen.ensemble import Ensemble
from boltzgen.free_energy import basin_free_energies
from boltzgen.molecule import Molecule
from boltzgen.sampling import SamplingRun, domain_of, openmmtools_tempering, reference

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FRAMES = RESULTS / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"
BASINS = {"C7ax": "0 < phi < 150", "extended": "110 < psi < 180", "upright": "-120 < phi < -60"}


def row(label: str, ensemble: Ensemble, evaluations: str, seconds: str) -> str:
    """One line of the table."""
    # The verdict is not shown, and meant for independent samples.
    energies = basin_free_energies(ensemble, BASINS, Verdict("", ""))
    cells = "".join(f"{e.delta_f_kT:9.2f} ± {e.half_width_kT:4.2f}" for e in energies.values())
    return f"{label:<34s}{cells}{evaluations:>12s}{seconds:>8s}"


def run_row(label: str, run: SamplingRun) -> str:
    """One line from a run."""
    return row(label, run.ensemble, f"{run.evaluations:.1e}", f"{run.seconds:.0f}")


def main() -> None:
    """All three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=20_000_000, help="of the batched parallel tempering")
    parser.add_argument("--iterations", type=int, default=1500, help="of openmmtools, 8 x 200 steps each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    molecule = Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb", temperature=300)
    titles = "".join(f"{name:>16s}" for name in BASINS)
    lines = [
        "-kT ln[P/(1-P)] in kT with 95 % half-width, ACE-ALA-NME, CHARMM36m, vacuum, 300 K, amides trans",
        f"{'':<34s}{titles}{'evaluations':>12s}{'s':>8s}",
    ]
    if FRAMES.exists():
        with np.load(FRAMES) as stored:
            frames = Ensemble(
                positions=stored["positions"],
                log_weights=stored["log_weights"],
                kT=molecule.kT,
                molecule=molecule,
                groups=stored["groups"],
            )
        lines.append(row("flattened, frames kept of the run", frames, "", ""))
    potential = CompiledPotential(molecule, compile=True)
    ours = reference(molecule, BASINS, options.evaluations, potential=potential, seed=options.seed)
    lines.append(run_row("batched parallel tempering", ours.run))
    theirs = openmmtools_tempering(molecule, n_iterations=options.iterations, seed=options.seed)
    theirs = theirs.restricted(domain_of(molecule)(theirs.ensemble.positions))
    lines.append(run_row("openmmtools parallel tempering", theirs))
    lines += [f"outside the domain: ours {ours.outside:.1e}, openmmtools {theirs.outside:.1e}"]
    lines += [ours.run.report(), theirs.report()]
    text = "\n".join(lines)
    print(text)
    (RESULTS / "second_opinion.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
