"""Error of a free-energy difference against the energy evaluations it took, for four ways to find it.

    python benchmarks/budget.py [--methods l2+ ...] [--seeds 0 1 2] [--work runs/budget]      (half an hour on one core)
    python benchmarks/budget.py --draw        (the picture and the table of the runs that are finished)

Alanine dipeptide, CHARMM36m, vacuum, 300 K; ΔF(C7ax), 0 < phi < 150, against the converged reference that ships. Every
run starts from the same structure, in C7eq. The trainings share their first stage (reverse KL at 1200 K) and their
schedule, and differ in the loss of cooling and refinement. A whole curve is read off each run: at each mark the
averaged weights of that moment draw samples, and what these cost is counted with what the training had cost so far;
samples of earlier marks are not counted, for a user who stops at this mark would not have drawn them. Parallel
tempering at each mark uses all frames but the first fifth, and of these the ones within the domain (trans amides).
Samples are used as they are: no clipping.

Writes a file for each finished run to --work, benchmarks/results/budget.png, budget.md and budget.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from ablation import BASELINE, BASIN, PDB, ROOT
from tables import Table
from targets import versions

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.output_files import write_json
from boltzgen.sampling import domain_of, parallel_tempering, shipped_reference
from boltzgen.training import Training

LOSSES = {"L2+": "l2+", "reverse KL": "reverse-kl", "weighted forward KL": "weighted-forward-kl"}
TEMPERING = "parallel tempering"
SAMPLED = 0.2  # samples at a mark, over the evaluations of the training so far
N_MARKS = 9
LADDERS, REPLICAS, SAVE_EVERY = 8, 8, 100
RESULTS = ROOT / "benchmarks" / "results"
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#000000")


def marks(last: float, first: float = 1e5, n: int = N_MARKS) -> list[int]:
    """Evaluations at which a curve is read, in equal ratios."""
    return [round(value) for value in np.geomspace(first, last, n)]


def difference(weights: np.ndarray, inside: np.ndarray) -> float:
    """ΔF of the basin against all else, kT; infinite where one of them has no weight."""
    within, without = float(weights[inside].sum()), float(weights[~inside].sum())
    return math.log(without / within) if within > 0 < without else math.copysign(math.inf, without - within)


def train(loss: str, seed: int, evaluations: float) -> list[dict[str, Any]]:
    """The curve of one training."""
    molecule = Molecule.from_pdb(PDB)
    generator = BoltzmannGenerator.for_molecule(molecule, seed=seed)
    basin, counts = parse_basin(BASIN, molecule), generator.potential.counts
    training = Training(generator, replace(BASELINE, loss=loss).stages(evaluations))
    spent_elsewhere, curve = counts.energy, []
    for mark in marks(evaluations):
        training.run(stop=lambda limit=mark + spent_elsewhere: counts.energy >= limit)
        trained = counts.energy - spent_elsewhere
        ensemble = generator.sample(max(round(SAMPLED * trained), 1000))
        spent_elsewhere = counts.energy - trained
        inside = np.asarray(basin.contains(ensemble.positions))
        curve.append(
            {
                "evaluations": trained + len(ensemble),
                "delta_f_kT": difference(ensemble.weights, inside),
                "ess": effective_sample_fraction(ensemble.log_weights),
                "heat": training.history.records[-1]["heat"],
                "seconds": training.seconds,
            }
        )
        print(loss, seed, curve[-1], flush=True)
    return curve


def temper(seed: int, evaluations: float) -> list[dict[str, Any]]:
    """The curve of one run of parallel tempering."""
    molecule = Molecule.from_pdb(PDB)
    per_step = LADDERS * REPLICAS
    begin = time.monotonic()
    run = parallel_tempering(
        molecule,
        n_steps=round(evaluations / per_step),
        n_replicas=REPLICAS,
        n_walkers=LADDERS,
        save_interval=SAVE_EVERY,
        burn_in=0.0,
        seed=seed,
    )
    frames = run.ensemble.positions
    inside = np.asarray(parse_basin(BASIN, molecule).contains(frames)).reshape(-1, LADDERS)
    counted = np.asarray(domain_of(molecule)(frames), dtype=float).reshape(-1, LADDERS)  # hot replicas isomerise
    curve = []
    for mark in marks(evaluations, n=round(N_MARKS * math.log(evaluations / 1e5) / math.log(16))):
        last = min(mark // (per_step * SAVE_EVERY), len(inside))
        rows = slice(last // 5, last)
        found = difference(counted[rows].ravel(), inside[rows].ravel())
        curve.append({"evaluations": last * per_step * SAVE_EVERY, "delta_f_kT": found})
    print(TEMPERING, seed, curve[-1], f"{time.monotonic() - begin:.0f} s", flush=True)
    return curve


def median_and_range(curves: list[list[dict[str, Any]]], truth: float) -> np.ndarray:
    """Evaluations, and median, smallest and largest |error| in kT, by mark: (4, n_marks)."""
    errors = np.abs([[point["delta_f_kT"] - truth for point in curve] for curve in curves])
    spent = np.mean([[point["evaluations"] for point in curve] for curve in curves], axis=0)
    return np.stack([spent, np.median(errors, axis=0), errors.min(axis=0), errors.max(axis=0)])


def draw(work: Path) -> None:
    """Picture and table of what is there."""
    reference = shipped_reference(Molecule.from_pdb(PDB))
    assert reference is not None, "no shipped reference for this System: run benchmarks/reference.py first"
    known = reference.free_energies["C7ax"]
    truth, bound = known["delta_f_kT"], known["half_width_kT"]
    runs = {name: sorted(work.glob(f"{name.replace(' ', '_')}-seed*.json")) for name in [*LOSSES, TEMPERING]}
    loaded = {name: [json.loads(path.read_text()) for path in paths] for name, paths in runs.items() if paths}
    planned = [point["evaluations"] for name in LOSSES for run in loaded.get(name, []) for point in run["curve"]]
    last = max(planned, default=0)
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    table = Table("|error of ΔF(C7ax)|, kT", ("method", "evaluations", "median", "least", "most", "ESS, median"))
    for (name, records), colour in zip(loaded.items(), COLOURS, strict=False):
        curves = [record["curve"] for record in records]
        spent, median, least, most = median_and_range(curves, truth)
        shown = np.isfinite(median)
        axes.plot(spent[shown], median[shown], "o-", color=colour, markersize=4, label=f"{name} ({len(curves)} runs)")
        axes.fill_between(spent[shown], least[shown], np.minimum(most[shown], 1e2), color=colour, alpha=0.15, lw=0)
        for k, row in enumerate(zip(spent, median, least, most, strict=True)):
            ess = [curve[k]["ess"] for curve in curves if "ess" in curve[k]]
            share = f"{np.median(ess):.3f}" if ess else None
            table.rows.append([name, f"{row[0]:.3g}", *(_figure(value) for value in row[1:]), share])
    axes.axhline(bound, color="#888888", linestyle=":", label="half-width of the reference")
    axes.set(xscale="log", yscale="log", xlabel="energy evaluations", ylabel="|error of ΔF(C7ax)|, kT", ylim=(3e-3, 20))
    axes.legend(fontsize=8)
    axes.set_title("alanine dipeptide, CHARMM36m, vacuum, 300 K: median and range", fontsize=10)
    figure.savefig(RESULTS / "budget.png", dpi=130)
    table.notes = [
        "`python benchmarks/budget.py`; every curve is read off one run each; median and range over the runs",
        f"reference: {truth:.3f} +- {bound:.3f} kT; an error below the second figure says nothing more",
        "evaluations of a training include those of the samples at that mark (a fifth of the training's)",
        f"none: no sample in the basin; each training is planned for {last:.3g} evaluations, the last samples among "
        "them, so that its early marks are read while it is still hot: who has less would cool faster",
        f"parallel tempering: {REPLICAS} temperatures to 1200 K, {LADDERS} ladders, 1 fs; each evaluation with forces",
    ]
    (RESULTS / "budget.md").write_text(table.markdown())
    # infinities as text: JSON knows none
    content = json.loads(json.dumps({"reference": known, "runs": loaded}), parse_constant=str)
    write_json(RESULTS / "budget.json", content)
    print(table.markdown())


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def main() -> None:
    """Run what is not finished, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=[*LOSSES, TEMPERING], choices=[*LOSSES, TEMPERING])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=float, default=1.6e6, help="of each training")
    parser.add_argument("--tempering", type=float, default=1.5e7, help="evaluations of each run of parallel tempering")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "budget")
    parser.add_argument("--draw", action="store_true", help="only the picture and the table")
    options = parser.parse_args()
    matplotlib.use("Agg")
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in [] if options.draw else options.seeds:
        for method in options.methods:
            path = options.work / f"{method.replace(' ', '_')}-seed{seed}.json"
            if path.exists():
                continue
            is_training = method != TEMPERING
            budget = options.evaluations if is_training else options.tempering
            curve = train(LOSSES[method], seed, budget) if is_training else temper(seed, budget)
            record = {"method": method, "seed": seed, "curve": curve, "date": date.today().isoformat()}
            path.write_text(json.dumps(record | {"versions": versions()}, indent=1) + "\n")
    draw(options.work)


if __name__ == "__main__":
    main()
