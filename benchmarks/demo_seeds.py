"""The main job, several seeds, against the converged reference: one row a seed.

    python benchmarks/demo_seeds.py [--seeds 0 1 2 3 4] [--work runs/demo_seeds]

Runs ``boltzgen run systems/alanine_dipeptide.pdb --seed S`` in a process of its own for each seed (a finished run is
not repeated), then holds each result against the reference frames of benchmarks/results. Writes
benchmarks/results/demo_seeds.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from overlaps import overlaps

from boltzgen.generator import BoltzmannGenerator
from boltzgen.sampling import shipped_reference

ROOT = Path(__file__).resolve().parent.parent
PDB = "systems/alanine_dipeptide.pdb"
FRAMES = ROOT / "benchmarks" / "results" / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"
OUTPUT = ROOT / "benchmarks" / "results" / "demo_seeds.json"
BASIN = "0 < phi < 150"


def run_seed(seed: int, work: Path, budget: str) -> Path:
    """The folder of a finished run."""
    folder = work / f"seed{seed}"
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "boltzgen", "run", PDB, "--seed", str(seed), "--budget", budget]
        subprocess.run([*command, "--out", str(folder)], cwd=ROOT, check=True)
    return folder


def against_reference(folder: Path) -> dict[str, float]:
    """ΔF, its distance from the reference, coverage of both basins and forward ESS of one run."""
    from boltzgen.collective_variables import parse_basin

    result = json.loads((folder / "result.json").read_text())
    generator = BoltzmannGenerator.load(folder / "model.safetensors")
    reference = shipped_reference(generator.molecule)
    assert reference is not None, "no shipped reference for this System: run benchmarks/reference.py first"
    with np.load(FRAMES) as stored:
        positions, weights = stored["positions"].astype(np.float64), np.exp(stored["log_weights"])
    with np.load(folder / "weights.npz") as stored:
        generated = stored["log_weights"]
    minor = np.asarray(parse_basin(BASIN, generator.molecule).contains(positions))
    overlap = overlaps(generator, positions, weights, generated, {"C7ax": minor, "rest": ~minor})
    found, truth = result["free_energies"]["C7ax"], reference.free_energies["C7ax"]
    return {
        "ess": result["ess_fraction"],
        "pareto_k": result["pareto_k"],
        "delta_f_kT": found["delta_f_kT"],
        "half_width_kT": 0.5 * (found["delta_f_kT_high"] - found["delta_f_kT_low"]),
        "error_kT": found["delta_f_kT"] - truth["delta_f_kT"],
        **overlap,
        "evaluations": result["energy_evaluations"],
        "force_evaluations": result["force_evaluations"],
        "seconds": result["wall_seconds"],
    }


def main() -> None:
    """Run, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo_seeds")
    options = parser.parse_args()
    rows = {}
    for seed in options.seeds:
        folder = run_seed(seed, options.work, options.budget)
        rows[seed] = against_reference(folder) | {"manifest": json.loads((folder / "manifest.json").read_text())}
    columns = [key for key in next(iter(rows.values())) if key != "manifest"]
    print("seed " + " ".join(f"{name:>20}" for name in columns))
    for seed, row in rows.items():
        print(f"{seed:>4} " + " ".join(f"{row[name]:>20.5g}" for name in columns))
    good = sum(row["ess"] >= 0.75 and abs(row["error_kT"]) <= 0.3 for row in rows.values())
    print(f"ESS >= 0.75 and |error| <= 0.3 kT in {good} of {len(rows)} seeds")
    first = next(iter(rows.values()))["manifest"]
    record = {
        "command": "python benchmarks/demo_seeds.py " + " ".join(sys.argv[1:]),
        "date": first["written"],
        "versions": first["versions"],
        "seeds": {str(seed): {name: row[name] for name in columns} for seed, row in rows.items()},
    }
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
