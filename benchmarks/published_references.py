"""Reference samples of the published benchmarks, to hold the trainings against.

    python benchmarks/published_references.py TARGET [--evaluations 2e8] [--work runs/published/references]

Dipeptides: a bias that flattens (phi, psi) is learned, sampled under and reweighted. Tetrapeptides: parallel tempering
to 800 K, with the constraints of the System. Neither knows anything of a generator. Kept: Ramachandran histograms of
each independent group of walkers, and 20,000 frames drawn at random with their log-weights.
"""

from __future__ import annotations

import argparse
import json
import logging
from datetime import date
from pathlib import Path

import numpy as np
import torch
from targets import BINS, TARGETS, torsion_pairs, versions

from boltzgen.energy import CompiledPotential
from boltzgen.ensemble import Ensemble
from boltzgen.molecule import Molecule
from boltzgen.output_files import write_json
from boltzgen.sampling import SamplingRun, flattened_sampling, learn_bias, parallel_tempering, torsion_angles

ROOT = Path(__file__).resolve().parent.parent
N_FRAMES = 20_000
WALKERS, LADDERS = 512, 96
LEARNING = 0.15  # share of the evaluations
HOTTEST, REPLICAS = 800.0, 7


def sample(molecule: Molecule, evaluations: float, seed: int) -> SamplingRun:
    """A run of the sampler that suits the molecule."""
    potential = CompiledPotential(molecule)
    if len(torsion_pairs(molecule)) > 1:
        n_steps = round(evaluations / (REPLICAS * LADDERS))
        return parallel_tempering(
            molecule,
            potential,
            n_steps=n_steps,
            t_max=HOTTEST,
            n_replicas=REPLICAS,
            n_walkers=LADDERS,
            time_step=2.0 if molecule.system.getNumConstraints() else 1.0,
            save_interval=200,
            seed=seed,
            progress=True,
        )
    n_learning = round(LEARNING * evaluations / WALKERS)
    bias = learn_bias(molecule, potential, n_steps=n_learning, n_walkers=WALKERS, seed=seed, progress=True)
    n_steps = round((1 - LEARNING) * evaluations / WALKERS)
    return flattened_sampling(
        molecule, potential, bias, n_steps=n_steps, n_walkers=WALKERS, save_interval=200, seed=seed + 1, progress=True
    )


def histograms(ensemble: Ensemble, molecule: Molecule) -> dict[str, np.ndarray]:
    """Weight in each cell of (phi, psi), (groups, BINS, BINS), by residue."""
    weights = np.exp(ensemble.log_weights - ensemble.log_weights.max())
    groups, numbers = np.unique(ensemble.groups, return_inverse=True)
    found = {}
    for residue, names in torsion_pairs(molecule).items():
        atoms = [molecule.torsions[name] for name in names]
        phi, psi = torsion_angles(torch.as_tensor(ensemble.positions).permute(2, 1, 0), atoms).numpy()
        cells = np.clip(((np.stack([phi, psi]) + 180) / 360 * BINS).astype(int), 0, BINS - 1)
        grid = np.zeros((len(groups), BINS, BINS))
        np.add.at(grid, (numbers, *cells), weights)
        found[f"ramachandran_{residue}"] = grid
    return found


def main() -> None:
    """Sample and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--evaluations", type=float, default=2e8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "published" / "references")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    molecule = TARGETS[options.target]()
    run = sample(molecule, options.evaluations, options.seed)
    ensemble = run.ensemble
    rows = np.random.default_rng(options.seed).choice(len(ensemble), min(N_FRAMES, len(ensemble)), replace=False)
    path = options.work / f"{options.target}.npz"
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        positions=ensemble.positions[rows].astype(np.float32),
        log_weights=ensemble.log_weights[rows],
        **histograms(ensemble, molecule),
    )
    partial.rename(path)
    record = {
        "target": options.target,
        "method": run.method,
        "frames": len(ensemble),
        "ess_of_frames": ensemble.ess_fraction,
        "evaluations": run.evaluations,
        "seconds": run.seconds,
        "steps": run.n_steps,
        "time_step_fs": run.time_step,
        "outside_domain": run.outside,
        "swap_acceptance": [float(x) for x in run.swap_acceptance],
        "round_trips": run.round_trips,
        "seed": options.seed,
        "date": date.today().isoformat(),
        "versions": versions(),
    }
    write_json(path.with_suffix(".json"), record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
