"""Does folding symmetric groups help? The demo molecule trained with and without, at the same budget: one row each.

    python benchmarks/folding.py [--seeds 0 1] [--budget quick] [--out benchmarks/results/folding.txt]

Coverage and forward ESS are against the shipped reference frames; ESS is that of 50,000 samples.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import coverage, forward_ess_fraction
from boltzgen.energy import CompiledPotential
from boltzgen.free_energy.acceptance_ratio import log_z_bar
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.run.schedules import make_schedule
from boltzgen.training import Training

ROOT = Path(__file__).resolve().parent.parent
FRAMES = ROOT / "benchmarks" / "results" / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"
N_SAMPLES = 50_000


def row(molecule: Molecule, fold: bool, seed: int, budget: str) -> str:
    """Train, sample, compare."""
    schedule = make_schedule(budget, 300)
    generator = BoltzmannGenerator.for_molecule(
        molecule, CompiledPotential(molecule), config=replace(schedule.config, fold_symmetry=fold), seed=seed
    )
    begin = time.perf_counter()
    Training(generator, list(schedule.stages), batch_size=schedule.batch_size).run()
    seconds = time.perf_counter() - begin
    ensemble = generator.sample(N_SAMPLES)
    with np.load(FRAMES) as stored:
        positions, weights = stored["positions"].astype(np.float64), np.exp(stored["log_weights"])
    log_weights = generator.log_weights_of(positions, generator.energies(positions))
    inside = np.isfinite(log_weights)
    log_z = log_z_bar(ensemble.log_weights, log_weights[inside], weights[inside])
    minor = np.asarray(parse_basin("0 < phi < 150", molecule).contains(positions))
    covered = [coverage(log_z - log_weights, rows, weights).coverage for rows in (minor, ~minor)]
    forward = forward_ess_fraction(log_weights, weights, log_z)
    values = (ensemble.ess_fraction, *covered, forward, 1 - weights[inside].sum() / weights.sum(), seconds)
    return f"{fold!s:>7}{seed:>6}" + "".join(f"{value:>12.4g}" for value in values)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    molecule = Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb")
    columns = ("ESS", "cover C7ax", "cover rest", "forward ESS", "outside", "s")
    lines = [f"{'folded':>7}{'seed':>6}" + "".join(f"{column:>12}" for column in columns)]
    print(lines[0], flush=True)
    for seed in options.seeds:
        for fold in (False, True):
            lines.append(row(molecule, fold, seed, options.budget))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
