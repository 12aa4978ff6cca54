"""What each part is worth: one training of alanine dipeptide (CHARMM36m, vacuum, 300 K) for each change.

    python benchmarks/ablation.py [--rows baseline "way back" ...] [--seeds 0] [--evaluations 9e5] [--out PATH]

All rows spend the same number of energy evaluations, those of ``boltzgen run --budget quick`` unless given. ESS is that
of 100,000 samples, unclipped, and with the largest 1e-4 of the weights clipped; P(C7ax) is the weighted population of
0 < phi < 150; the shipped reference stands below the table. Writes benchmarks/results/ablation.md anew after every row.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import openmm
import torch
from tables import Table

from boltzgen import __version__
from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import clipped_ess
from boltzgen.errors import BoltzgenError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.sampling import shipped_reference
from boltzgen.training import BATCH_SIZE, ReplayBuffer, Stage, Training

ROOT = Path(__file__).resolve().parent.parent
N_SAMPLES = 100_000
HEAT = 4.0
BASIN = "0 < phi < 150"
PDB = ROOT / "systems" / "alanine_dipeptide.pdb"


@dataclass(frozen=True)
class Row:
    """One change of the usual training.

    Attributes
    ----------
    config : dict
        Of `GeneratorConfig`.
    hot, cooling : float
        Shares of the steps; the rest refines.
    hot_loss, loss : str
        While hot, and after it.
    stage : dict
        Of the cooling and refining stages.
    rate : float
        Learning rate.
    """

    config: dict[str, Any] = field(default_factory=dict)
    hot: float = 0.06
    cooling: float = 0.54
    hot_loss: str = "reverse-kl"
    loss: str = "l2+"
    stage: dict[str, Any] = field(default_factory=dict)
    ess_bound: float | None = None
    rate: float = 1e-3
    batch_size: int = BATCH_SIZE
    sharpness: float = 0.5

    def stages(self, evaluations: float) -> list[Stage]:
        """For a budget of energy evaluations."""
        fresh = Stage("", self.loss, 1, **self.stage).n_fresh(self.batch_size)
        n_hot = round(self.hot * evaluations / self.batch_size)
        n_cooling = round(self.cooling * evaluations / fresh)
        n_rest = round((1 - self.hot - self.cooling) * evaluations / fresh)
        hot = Stage("hot", self.hot_loss, n_hot, HEAT, HEAT, self.rate, self.rate)
        cooling = Stage(
            "cooling", self.loss, n_cooling, HEAT, 1.0, self.rate, self.rate, ess_bound=self.ess_bound, **self.stage
        )
        rest = Stage("refinement", self.loss, n_rest, 1.0, 1.0, self.rate, 1e-5, **self.stage)
        return [stage for stage in (hot, cooling, rest) if stage.n_steps]


BASELINE = Row()
ROWS = {
    "baseline": BASELINE,
    "loss: reverse KL": replace(BASELINE, loss="reverse-kl"),
    "loss: reverse KL, path gradients": replace(BASELINE, loss="reverse-kl-path"),
    "loss: weighted forward KL": replace(BASELINE, loss="weighted-forward-kl"),
    "no mask": replace(BASELINE, loss="log-variance"),
    "no detach": replace(BASELINE, loss="l2+attached"),
    "no hot stage": replace(BASELINE, hot=0.0, cooling=0.6),
    "hot with L2+": replace(BASELINE, hot_loss="l2+"),
    "fast cooling": replace(BASELINE, cooling=0.2),
    "slow cooling": replace(BASELINE, cooling=0.8),
    "own pace, ESS 0.5": replace(BASELINE, ess_bound=0.5),
    "own pace, ESS 0.7": replace(BASELINE, ess_bound=0.7),
    "replay 0.25": replace(BASELINE, stage={"replay": 0.25}),
    "replay 0.5": replace(BASELINE, stage={"replay": 0.5}),
    "replay 0.5, by weight": replace(BASELINE, stage={"replay": 0.5}, sharpness=1.0),
    "replay 0.5, uniform": replace(BASELINE, stage={"replay": 0.5}, sharpness=0.0),
    "batch 384": replace(BASELINE, batch_size=384),
    "batch 1536": replace(BASELINE, batch_size=1536),
    "rate 2e-3": replace(BASELINE, rate=2e-3),
    "half the width": replace(BASELINE, config={"torsion_hidden": 32, "stiff_hidden": 48, "hydrogen_hidden": 32}),
    "twice the width": replace(BASELINE, config={"torsion_hidden": 128, "stiff_hidden": 192, "hydrogen_hidden": 128}),
    "surroundings": replace(BASELINE, config={"surroundings": 64}),
    "way back": replace(BASELINE, config={"way_back": 2}),
}


def run(row: Row, seed: int, evaluations: float) -> dict[str, Any]:
    """Train and measure."""
    molecule = Molecule.from_pdb(PDB)
    generator = BoltzmannGenerator.for_molecule(molecule, config=GeneratorConfig(**row.config), seed=seed)
    before = generator.potential.counts.energy
    started = time.process_time()
    training = Training(
        generator, row.stages(evaluations), batch_size=row.batch_size, buffer=ReplayBuffer(sharpness=row.sharpness)
    )
    training.run()
    seconds = time.process_time() - started
    spent = generator.potential.counts.energy - before
    ensemble = generator.sample(N_SAMPLES)
    inside = parse_basin(BASIN, molecule).contains(ensemble.positions)
    return {
        "evaluations": spent,
        "cpu_seconds": seconds,
        "ess": ensemble.ess_fraction,
        "ess_clipped": clipped_ess(ensemble.log_weights).clipped_ess_fraction,
        "population": float(ensemble.weights[inside].sum()),
        "generated": float(inside.mean()),
        "skipped": training.skipped,
        "divergences": len(training.history.happened("divergence")),
    }


def main() -> None:
    """Run the rows that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evaluations", type=float, default=9e5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "ablation")
    options = parser.parse_args()
    path = options.out.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in options.seeds:
        for name in options.rows:
            key = f"{name} | {seed} | {options.evaluations:g}"
            if key in found:
                continue
            try:
                found[key] = run(ROWS[name], seed, options.evaluations)
            except BoltzgenError as error:
                found[key] = {"error": str(error)}
            found[key] |= {"date": date.today().isoformat(), "torch": torch.__version__, "boltzgen": __version__}
            found[key] |= {"openmm": openmm.version.version, "python": platform.python_version()}
            path.write_text(json.dumps(found, indent=1) + "\n")
            write(found, options.out.with_suffix(".md"))
            print(key, found[key], flush=True)


def write(found: dict[str, Any], path: Path) -> None:
    """The table as Markdown."""
    headings = ("change", "seed", "evaluations", "ESS", "clipped", "P(C7ax)", "generated", "CPU s")
    reference = shipped_reference(Molecule.from_pdb(PDB))
    assert reference is not None, "no shipped reference for this System: run benchmarks/reference.py first"
    population = 1 / (1 + math.exp(reference.free_energies["C7ax"]["delta_f_kT"]))
    notes = [
        "`python benchmarks/ablation.py`; alanine dipeptide, CHARMM36m, vacuum, 300 K; ESS of 100,000 samples",
        f"the converged reference has P(C7ax) = {population:.4f}",
    ]
    table = Table("What each part is worth", headings, notes=notes)
    for key, row in found.items():
        name, seed, _ = key.split(" | ")
        if "error" in row:
            table.rows.append([name, seed, None, row["error"], None, None, None, None])
            continue
        figures = [f"{row[column]:.4f}" for column in ("ess", "ess_clipped", "population", "generated")]
        table.rows.append([name, seed, f"{row['evaluations']:,}", *figures, f"{row['cpu_seconds']:.0f}"])
    path.write_text(table.markdown())


if __name__ == "__main__":
    main()
