"""The converged reference for ACE-ALA-NME, CHARMM36m, vacuum, 300 K.

    python benchmarks/reference.py [--steps 400000] [--walkers 512] [--seed 1] [--work runs/reference]

Learns a flattening bias on (phi, psi); samples under it from C7eq, from C7ax, and twice at half the time step;
reweights; writes benchmarks/results/reference_*.npz (frames with log-weights) and boltzgen/data/reference_*.json (the
summary that ships). Each finished stage is kept in --work and not repeated: start the same command again to go on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import torch

from boltzgen import __version__
from boltzgen.diagnostics import Verdict
from boltzgen.energy import CompiledPotential
from boltzgen.energy.fingerprint import fingerprint
from boltzgen.ensemble import Ensemble
from boltzgen.free_energy import BasinFreeEnergy, basin_free_energies
from boltzgen.molecule import Molecule
from boltzgen.sampling import BiasedEnergy, SamplingRun, TorsionBias, flattened_sampling, learn_bias, torsion_angles
from boltzgen.sampling.domain import domain_of

ROOT = Path(__file__).resolve().parent.parent
NAME = "reference_ace_ala_nme_charmm36m_vacuum_300K"
BASINS = {"C7ax": "0 < phi < 150"}
GRID = 72
log = logging.getLogger("reference")


def keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a stage; complete or not at all."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)


def stage_bias(molecule: Molecule, potential: CompiledPotential, work: Path, steps: int, seed: int) -> TorsionBias:
    """The bias, learned or read."""
    path = work / "bias.npz"
    atoms = (molecule.torsions["phi"], molecule.torsions["psi"])
    if not path.exists():
        before, begin = potential.counts.force, time.perf_counter()
        bias = learn_bias(molecule, potential, n_steps=steps, grid_size=GRID, seed=seed)
        record = [potential.counts.force - before, time.perf_counter() - begin]
        keep(path, {"grid": bias.grid, "record": np.array(record)})
    with np.load(path) as stored:
        log.info("bias: %.3g evaluations, %.0f s, up to %.1f kT", *stored["record"], stored["grid"].max() / molecule.kT)
        return TorsionBias(atoms, stored["grid"])


def stage_run(
    name: str, work: Path, molecule: Molecule, sample: dict, start: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One run, made or read: everything needed later, with the frames outside the domain still in it."""
    path = work / f"{name}.npz"
    if not path.exists():
        log.info("run %s begins", name)
        run: SamplingRun = flattened_sampling(molecule, start=start, **sample)
        ensemble = run.ensemble
        record = [run.evaluations, run.seconds, run.n_steps, run.time_step, run.seed]
        keep(
            path,
            {
                "positions": ensemble.positions,
                "log_weights": ensemble.log_weights,
                "energies": ensemble.energies,
                "groups": ensemble.groups,
                "record": np.array(record),
            },
        )
    with np.load(path) as stored:
        return dict(stored)


def ensemble_of(molecule: Molecule, runs: list[dict[str, np.ndarray]]) -> tuple[Ensemble, float]:
    """Runs pooled, restricted to the domain; and the share of the weight outside."""
    offsets = np.cumsum([0] + [int(run["groups"].max()) + 1 for run in runs])
    both = Ensemble(
        positions=np.concatenate([run["positions"] for run in runs]),
        log_weights=np.concatenate([run["log_weights"] for run in runs]),
        kT=molecule.kT,
        energies=np.concatenate([run["energies"] for run in runs]),
        molecule=molecule,
        groups=np.concatenate([run["groups"] + offset for run, offset in zip(runs, offsets, strict=False)]),
    )
    inside = domain_of(molecule)(both.positions)
    return both[np.nonzero(inside)[0]], float(both.weights[~inside].sum())


def entry(estimate: BasinFreeEnergy, ensemble: Ensemble, outside: float, runs: list[dict[str, np.ndarray]]) -> dict:
    """What the summary says about one estimate."""
    return {
        **estimate.to_dict(),
        "half_width_kT": estimate.half_width_kT,
        "frames": len(ensemble),
        "frames_in_basin": estimate.n_in_basin,
        "groups": len(np.unique(ensemble.groups)),
        "ess_fraction_of_frames": ensemble.ess_fraction,
        "outside_domain": outside,
        "energy_evaluations": int(sum(run["record"][0] for run in runs)),
        "seconds": round(float(sum(run["record"][1] for run in runs))),
        "steps_of_each_walker": [int(run["record"][2]) for run in runs],
        "time_step_fs": [float(run["record"][3]) for run in runs],
        "seeds": [int(run["record"][4]) for run in runs],
    }


def agreement(a: BasinFreeEnergy, b: BasinFreeEnergy) -> dict[str, float]:
    """Difference of two estimates and the 95 % half-width of that difference, kT."""
    return {
        "difference_kT": a.delta_f_kT - b.delta_f_kT,
        "half_width_kT": math.hypot(a.half_width_kT, b.half_width_kT),
    }


def ramachandran(molecule: Molecule, ensemble: Ensemble) -> np.ndarray:
    """Probability of each of 72 x 72 cells of (phi, psi) from -180 degrees, first index phi."""
    x = torch.from_numpy(ensemble.positions).permute(2, 1, 0)
    phi, psi = torsion_angles(x, (molecule.torsions["phi"], molecule.torsions["psi"])).double().numpy()
    edges = np.linspace(-180, 180, 73)
    return np.histogram2d(phi, psi, bins=(edges, edges), weights=ensemble.weights)[0]


def save_frames(path: Path, molecule: Molecule, ensemble: Ensemble, seed: int) -> None:
    """About 16,000 frames, a quarter of them from C7ax, with log-weights; equal weights inside each stratum."""
    random = np.random.default_rng(seed)
    x = torch.from_numpy(ensemble.positions).permute(2, 1, 0)
    phi = torsion_angles(x, [molecule.torsions["phi"]]).numpy()[0]
    minor, weights = (phi > 0) & (phi < 150), ensemble.weights
    rows, log_weights = [], []
    for stratum, n in ((~minor, 12_000), (minor, 4_000)):
        members = np.nonzero(stratum)[0]
        share = weights[members].sum()
        cumulative = np.cumsum(weights[members]) / share
        # Systematic resampling: a frame of more than average weight may come twice, no frame of typical weight is lost.
        rows.append(
            members[np.searchsorted(cumulative, (np.arange(n) + random.random()) / n).clip(max=len(members) - 1)]
        )
        log_weights.append(np.full(n, math.log(share / n)))
    chosen = np.concatenate(rows)
    positions = ensemble.positions[chosen] - ensemble.positions[chosen].mean(axis=1, keepdims=True)
    # Multiples of 2^-18 nm (4e-6 nm, 0.01 kJ/mol in the stiffest bond at most) compress better than float32 noise.
    positions = (np.round(positions * 2**18) / 2**18).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert ensemble.groups is not None
    np.savez_compressed(
        path,
        positions=positions,
        log_weights=np.concatenate(log_weights),
        groups=ensemble.groups[chosen].astype(np.int16),
    )


def collect(molecule: Molecule, runs: dict[str, dict[str, np.ndarray]], options: argparse.Namespace) -> dict:
    """The summary, and the frames file."""
    names = {"pooled": ["from_c7eq", "from_c7ax"], "half_steps": ["half_step_1", "half_step_2"]}
    names.update({name: [name] for name in runs})
    entries, estimates = {}, {}
    for name, members in names.items():
        chosen = [runs[member] for member in members]
        ensemble, outside = ensemble_of(molecule, chosen)
        estimates[name] = basin_free_energies(ensemble, BASINS, Verdict("", ""))["C7ax"]
        entries[name] = entry(estimates[name], ensemble, outside, chosen)
        log.info("%s: %s", name, estimates[name])
        if name == "pooled":
            save_frames(options.frames, molecule, ensemble, options.seed)
            histogram = ramachandran(molecule, ensemble)
    return {
        "system": "ACE-ALA-NME, CHARMM36m, vacuum (systems/alanine_dipeptide.pdb)",
        "system_hash": molecule.system_hash,
        "fingerprint": fingerprint(molecule.system),
        "temperature_K": 300.0,
        "domain": "all amides trans (|omega| > 90 degrees), chirality and hydrogen labels of the structure",
        "method": "Langevin (BAOAB, hydrogens of 6 amu) under a static bias on (phi, psi) learned by well-tempered "
        "metadynamics, reweighted; errors by jackknife over independent groups of walkers, 95 %",
        "free_energies": {"C7ax": entries["pooled"]},
        "checks": {
            "starts": agreement(estimates["from_c7eq"], estimates["from_c7ax"]),
            "half_time_step": agreement(estimates["half_steps"], estimates["pooled"]),
            **{name: value for name, value in entries.items() if name != "pooled"},
        },
        "command": "python benchmarks/reference.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "boltzgen": __version__,
            "openmm": openmm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "histogram": {
            "axes": "phi, psi from -180 degrees in 72 cells each",
            "probability": [[float(f"{p:.3g}") for p in row] for row in histogram],
        },
    }


def main() -> None:
    """All stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400_000, help="of each walker in each run")
    parser.add_argument("--learn", type=int, default=40_000, help="steps to learn the bias")
    parser.add_argument("--walkers", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reference")
    parser.add_argument("--frames", type=Path, default=ROOT / "benchmarks" / "results" / f"{NAME}.npz")
    parser.add_argument("--summary", type=Path, default=ROOT / "boltzgen" / "data" / f"{NAME}.json")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    molecule = Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb", temperature=300)
    potential = CompiledPotential(molecule, compile=True)
    bias = stage_bias(molecule, potential, options.work, options.learn, options.seed)
    names = ("scout", "from_c7eq", "from_c7ax", "half_step_1", "half_step_2")
    missing = [name for name in names if not (options.work / f"{name}.npz").exists()]
    energy = BiasedEnergy(potential, bias, options.steps * options.walkers) if missing else None
    common = {
        "potential": potential,
        "bias": bias,
        "energy": energy,
        "n_walkers": options.walkers,
        "n_groups": min(32, options.walkers),
        "save_interval": 1000,
    }
    scout = stage_run("scout", options.work, molecule, {**common, "n_steps": 5000, "seed": options.seed + 10}, None)
    x = torch.from_numpy(scout["positions"]).permute(2, 1, 0)
    phi = torsion_angles(x, [molecule.torsions["phi"]]).numpy()[0]
    in_c7ax = np.nonzero((phi > 30) & (phi < 120) & domain_of(molecule)(scout["positions"]))[0]
    c7ax = scout["positions"][in_c7ax[np.argmin(scout["energies"][in_c7ax])]]
    c7eq = np.array(molecule.positions._value, dtype=np.float64)
    mixed = np.stack([c7ax if w % 2 else c7eq for w in range(options.walkers)])
    plan = {
        "from_c7eq": (c7eq, {"n_steps": options.steps, "seed": options.seed + 1}),
        "from_c7ax": (c7ax, {"n_steps": options.steps, "seed": options.seed + 2}),
        "half_step_1": (mixed, {"n_steps": options.steps, "seed": options.seed + 3, "time_step": 1.0}),
        "half_step_2": (mixed, {"n_steps": options.steps, "seed": options.seed + 4, "time_step": 1.0}),
    }
    runs = {
        name: stage_run(name, options.work, molecule, {**common, **settings}, start)
        for name, (start, settings) in plan.items()
    }
    summary = collect(molecule, runs, options)
    text = json.dumps(summary, indent=1)
    # One row of the histogram a line instead of one number.
    text = re.sub(r"\[([-+.\de,\s]+)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)
    options.summary.write_text(text + "\n")
    log.info("checks: %s", {k: summary["checks"][k] for k in ("starts", "half_time_step")})
    log.info("done: summary and frames written")


if __name__ == "__main__":
    main()
