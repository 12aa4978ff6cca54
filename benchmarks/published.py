"""Data-free training on the published benchmarks: energy evaluations, ESS, populations.

    python benchmarks/published.py train TARGET [--seed 0] [--evaluations 4e6] [--work runs/published]
    python benchmarks/published.py measure TARGET [--seed 0] [--blocks 10] [--block-size 1000000]

`train` writes a checkpoint every minute and goes on from it. `measure` draws ten blocks of a million samples from the
final weights (no checkpoint is chosen by its ESS) and prints ESS without clipping, per block, and with the largest 1e-4
of the weights clipped, as the published values are. TARGET: see benchmarks/targets.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from targets import BINS, TARGETS, torsion_pairs, versions

from boltzgen.diagnostics import effective_sample_fraction, pareto_k
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.output_files import write_json
from boltzgen.run.checkpoints import load_checkpoint, save_checkpoint
from boltzgen.sampling import torsion_angles
from boltzgen.training import BATCH_SIZE, Stage, Training, annealing_stages, refinement_stage

ROOT = Path(__file__).resolve().parent.parent
CLIPPED = 1e-4
CHUNK = 50_000
log = logging.getLogger("published")


def stages(options: argparse.Namespace) -> list[Stage]:
    """Hot and cooling for a share of the evaluations, then refinement."""
    n_steps = int(options.evaluations) // options.batch_size
    n_annealing = round(options.annealing * n_steps)
    n_fresh = refinement_stage(1, replay=options.replay).n_fresh(options.batch_size)
    n_refinement = (n_steps - n_annealing) * options.batch_size // n_fresh
    return [*annealing_stages(4.0, n_annealing), refinement_stage(n_refinement, replay=options.replay)]


def folder_of(options: argparse.Namespace) -> Path:
    """Where a training writes."""
    return options.work / f"{options.target}-{options.label}-seed{options.seed}"


def train(options: argparse.Namespace) -> None:
    """Train, or go on with it."""
    folder = folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    molecule = TARGETS[options.target]()
    config = GeneratorConfig(**json.loads(options.config))
    generator = BoltzmannGenerator.for_molecule(molecule, seed=options.seed, config=config)
    plan = stages(options)
    identity = {"target": options.target, "seed": options.seed, "System": molecule.system_hash}
    checkpoint = folder / "checkpoint.pt"
    training = Training(
        generator,
        plan,
        batch_size=options.batch_size,
        on_record=report,
        on_checkpoint=lambda training: save_checkpoint(checkpoint, training, identity),
    )
    if checkpoint.exists():
        stored = load_checkpoint(checkpoint)
        stored.check(identity)
        stored.restore(training)
        log.info("going on from step %d", training.step)
    training.run()
    generator.save(folder / "model.safetensors")
    counts = generator.potential.counts
    record = {
        "target": options.target,
        "seed": options.seed,
        "evaluations": counts.energy,
        "force_evaluations": counts.force,
        "seconds": training.seconds,
        "skipped": training.skipped,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "stages": [str(stage) for stage in plan],
        "config": str(generator.flow.config),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    write_json(folder / "training.json", record)
    log.info("%s", json.dumps(record))


def report(record: dict[str, Any], training: Training) -> None:
    """A line now and then."""
    if record["step"] % 250 == 0:
        log.info(
            "%6d/%d %6.0f K ESS %5.1f%% %.3g evaluations %6.0f s",
            record["step"],
            training.n_steps,
            record["temperature"],
            100 * record["ess_fraction"],
            record["energy_evaluations"],
            record["seconds"],
        )


def measure(options: argparse.Namespace) -> None:
    """ESS over blocks, and the torsions of all samples as weighted histograms."""
    folder = folder_of(options)
    molecule = TARGETS[options.target]()
    generator = BoltzmannGenerator.load(folder / "model.safetensors")
    generator.rng.manual_seed(1000 + options.seed)
    pairs = torsion_pairs(molecule)
    atoms = {residue: [molecule.torsions[name] for name in names] for residue, names in pairs.items()}
    blocks, kept, started = [], {residue: [] for residue in pairs}, time.monotonic()
    for block in range(options.blocks):
        log_weights = []
        for _ in range(0, options.block_size, CHUNK):
            ensemble = generator.sample(CHUNK)
            log_weights.append(ensemble.log_weights)
            for residue, (phi, psi) in atoms.items():
                angles = torsion_angles(torch.as_tensor(ensemble.positions).permute(2, 1, 0), (phi, psi))
                kept[residue].append(angles.numpy().astype(np.float32))
        blocks.append(np.concatenate(log_weights))
        log.info("block %d: ESS %.4f, %.0f s", block, effective_sample_fraction(blocks[-1]), time.monotonic() - started)
    everything = np.concatenate(blocks)
    clipped = clip(everything)
    unclipped = [effective_sample_fraction(block) for block in blocks]
    histograms = {}
    weights = np.exp(everything - everything.max())
    for residue, parts in kept.items():
        phi, psi = np.concatenate(parts, axis=1)
        grid = np.histogram2d(phi, psi, bins=BINS, range=[[-180, 180]] * 2, weights=weights)[0]
        histograms[f"ramachandran_{residue}"] = grid / grid.sum()
    np.savez_compressed(folder / "histograms.npz", **histograms)
    record = {
        "ess_unclipped_median": float(np.median(unclipped)),
        "ess_unclipped_range": [min(unclipped), max(unclipped)],
        "ess_unclipped_all": effective_sample_fraction(everything),
        "ess_clipped": effective_sample_fraction(clipped),
        "ess_clipped_blocks": [effective_sample_fraction(clip(block)) for block in blocks],
        "pareto_k": pareto_k(everything[: options.block_size]),
        "samples": len(everything),
        "blocks": options.blocks,
        "seconds": time.monotonic() - started,
        "date": date.today().isoformat(),
        "versions": versions(),
    }
    for residue, (phi, _) in pairs.items():
        angle = np.concatenate(kept[residue], axis=1)[0]
        inside = (angle > 0) & (angle < 150)
        record[f"P(0 < {phi} < 150)"] = float(weights[inside].sum() / weights.sum())
        record[f"generated(0 < {phi} < 150)"] = float(inside.mean())
    write_json(folder / "measured.json", record)
    print(json.dumps(record, indent=1))


def clip(log_weights: np.ndarray) -> np.ndarray:
    """The largest 1e-4 of the weights set to the smallest of them, as the published values have it."""
    n = max(int(CLIPPED * len(log_weights)), 1)
    return np.minimum(log_weights, np.partition(log_weights, -n)[-n])


def main() -> None:
    """Read the options and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["train", "measure"])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=4e6)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--annealing", type=float, default=0.6, help="share of the steps that are hot or cooling")
    parser.add_argument("--replay", type=float, default=0.0, help="share of reused samples in the refinement")
    parser.add_argument("--config", default="{}", help="changes of the GeneratorConfig, as JSON")
    parser.add_argument("--label", default="standard", help="part of the folder's name")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--block-size", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "published")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    {"train": train, "measure": measure}[options.action](options)


if __name__ == "__main__":
    main()
