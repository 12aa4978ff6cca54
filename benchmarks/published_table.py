"""The table of the published benchmarks: every finished run of benchmarks/published.py against its reference.

    python benchmarks/published_table.py [--work runs/published]

Reads what `published.py` (train, measure) and `published_references.py` wrote, adds coverage and forward ESS, and
writes benchmarks/results/published.md and published.json. A total variation is that of (phi, psi) on 100 x 100 bins
between the weighted samples of all blocks and the reference; its floor is what two runs of these sizes would show if
both were right: half the sum over the bins of the expected |difference|, from the spread among independent groups of
the reference and from the weights of the samples.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overlaps import overlaps
from tables import Table
from targets import TARGETS, torsion_pairs, versions

from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.output_files import write_json
from boltzgen.sampling import torsion_angles

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHIPPED = {"dipeptide-charmm36m": RESULTS / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"}
N_SAMPLES = 100_000
PUBLISHED = {
    "dipeptide-ff96": "published: FAB 94.8 % at 2.1e8, TA-BG 95.8 % and CMT 97.7 % at 1e8 evaluations (clipped)",
    "tetrapeptide-ff99sb": "published: CMT 68.6 % at 1e8 evaluations (clipped)",
}


def total_variation(generated: np.ndarray, n_effective: float, groups: np.ndarray) -> tuple[float, float]:
    """Total variation between histograms, and its floor.

    Parameters
    ----------
    generated : (n, n) array
        Shares of the samples.
    n_effective : float
        ESS of the samples.
    groups : (G, n, n) array
        Weights of the reference, by independent group.
    """
    reference = groups.sum(0) / groups.sum()
    shares = groups.sum((1, 2)) / groups.sum()
    spread = groups / groups.sum() - shares[:, None, None] * reference
    variance = spread**2 * len(groups) / (len(groups) - 1)
    both = variance.sum(0) + reference * (1 - reference) / n_effective
    floor = 0.5 * math.sqrt(2 / math.pi) * np.sqrt(both).sum()
    return float(0.5 * np.abs(generated - reference).sum()), float(floor)


def reference_of(target: str, work: Path) -> Path | None:
    """File with reference frames, if there is one."""
    path = SHIPPED.get(target, work / "references" / f"{target}.npz")
    return path if path.exists() else None


def row_of(folder: Path, target: str, work: Path) -> dict[str, Any]:
    """Everything known of a run."""
    training = json.loads((folder / "training.json").read_text())
    measured = json.loads((folder / "measured.json").read_text())
    row: dict[str, Any] = {"target": target, "folder": folder.name, "training": training, "measured": measured}
    path = reference_of(target, work)
    if path is None:
        return row
    molecule = TARGETS[target]()
    generator = BoltzmannGenerator.load(folder / "model.safetensors")
    generator.rng.manual_seed(2000 + training["seed"])
    with np.load(path) as stored:
        positions, weights = stored["positions"].astype(np.float64), np.exp(stored["log_weights"])
        groups = {name: stored[name] for name in stored.files if name.startswith("ramachandran")}
    log_weights = generator.sample(N_SAMPLES).log_weights
    basins = basins_of(molecule, positions)
    row["overlaps"] = overlaps(generator, positions, weights, log_weights, basins)
    row["reference_populations"] = {name: float(weights[rows].sum() / weights.sum()) for name, rows in basins.items()}
    if groups:
        for name, grids in groups.items():
            row["reference_populations"][f"positive {_phi(name, molecule)}"] = positive_share(grids)
        n_effective = measured["ess_unclipped_all"] * measured["samples"]
        with np.load(folder / "histograms.npz") as stored:
            found = {name: total_variation(stored[name], n_effective, grids) for name, grids in groups.items()}
        row["total_variation"] = {name: {"value": tv, "floor": floor} for name, (tv, floor) in found.items()}
    return row


def _phi(histogram: str, molecule: Molecule) -> str:
    return torsion_pairs(molecule)[histogram.removeprefix("ramachandran_")][0]


def positive_share(grids: np.ndarray) -> float:
    """Weight of 0 < phi < 150 degrees, on the grid; of the cell that 150 divides, the part below it."""
    by_phi = grids.sum((0, 2))
    edges = np.linspace(-180, 180, len(by_phi) + 1)
    inside = np.clip(np.minimum(edges[1:], 150) - np.maximum(edges[:-1], 0), 0, None) / np.diff(edges)
    return float(by_phi @ inside / by_phi.sum())


def basins_of(molecule: Molecule, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The frames with one phi between 0 and 150 degrees, for each of them, and those without."""
    frames = torch.as_tensor(positions).permute(2, 1, 0)
    found, rest = {}, np.ones(len(positions), dtype=bool)
    for phi, _ in torsion_pairs(molecule).values():
        angle = torsion_angles(frames, [molecule.torsions[phi]])[0].numpy()
        found[f"positive {phi}"] = (angle > 0) & (angle < 150)
        rest &= ~found[f"positive {phi}"]
    return found | {"rest": rest}


def table_of(rows: list[dict[str, Any]], target: str) -> Table:
    """One molecule."""
    columns = (
        "run",
        "evaluations",
        "minutes",
        "ESS, unclipped: median (range) of the blocks",
        "clipped",
        "Pareto k",
        "forward ESS (without the worst 0.1 %); reference outside the domain",
        "coverage",
        "populations: generated, reweighted, reference",
        "total variation (floor)",
    )
    table = Table(target, columns)
    for row in rows:
        training, measured = row["training"], row["measured"]
        low, high = measured["ess_unclipped_range"]
        overlap = row.get("overlaps", {})
        covered = [f"{name.removeprefix('coverage_')} {x:.3f}" for name, x in overlap.items() if "coverage" in name]
        populations = []
        for key in [name for name in measured if name.startswith("P(")]:
            phi = key.split(" < ")[1]
            known = row.get("reference_populations", {}).get(f"positive {phi}")
            values = [measured[key.replace("P(", "generated(")], measured[key], known]
            populations.append(f"{phi}: " + ", ".join("-" if value is None else f"{value:.4f}" for value in values))
        distances = [f"{v['value']:.2e} ({v['floor']:.2e})" for v in row.get("total_variation", {}).values()]
        table.rows.append(
            [
                row["folder"].removeprefix(f"{target}-"),
                f"{training['evaluations']:.3g}",
                f"{training['seconds'] / 60:.0f}",
                f"{measured['ess_unclipped_median']:.4f} ({low:.4f} to {high:.4f}, {measured['blocks']} blocks)",
                f"{measured['ess_clipped']:.4f}",
                f"{measured['pareto_k']:.2f}",
                reached(overlap) if overlap else None,
                "; ".join(covered) or None,
                "; ".join(populations),
                "; ".join(distances) or None,
            ]
        )
    table.notes = [PUBLISHED[target]] if target in PUBLISHED else []
    return table


def reached(overlap: dict[str, float]) -> str:
    """Forward ESS in the domain, and how much of the reference is outside it."""
    both = f"{overlap['forward_ess']:.3f} ({overlap['forward_ess_without_worst']:.3f})"
    return f"{both}; {overlap['share_outside_domain']:.1g}"


def main() -> None:
    """Collect and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "published")
    options = parser.parse_args()
    tables, rows = [], []
    for target in TARGETS:
        folders = sorted(path.parent for path in options.work.glob(f"{target}-*/measured.json"))
        found = [row_of(folder, target, options.work) for folder in folders]
        if found:
            tables.append(table_of(found, target))
            rows += found
    notes = (
        "`python benchmarks/published.py train|measure TARGET`, `python benchmarks/published_references.py TARGET`, "
        "`python benchmarks/published_table.py`. No data; no checkpoint chosen by its ESS. Blocks of 1e6 samples of "
        "the final weights; clipped: the largest 1e-4 of all weights, as in the published values. Minutes: wall time, "
        "one thread, other programs beside it, pauses included. Populations: 0 < phi < 150 degrees."
    )
    text = "\n".join(["# Published benchmarks", "", notes, "", *(table.markdown() for table in tables)])
    (RESULTS / "published.md").write_text(text)
    references = sorted((options.work / "references").glob("*.json"))
    record = {"rows": rows, "references": [json.loads(path.read_text()) for path in references], "versions": versions()}
    write_json(RESULTS / "published.json", record)
    print(text)


if __name__ == "__main__":
    main()
