"""Alanine dipeptide three ways against pymbar's MBAR on parallel tempering, with the evaluations spent either way.

    python benchmarks/alanine_table.py [--run runs/demo_seeds/seed0] [--work runs/alanine_table]    (half an hour)

CHARMM36m, 300 K. ΔF(C7ax), 0 < phi < 150, in vacuum; ΔF from vacuum to OBC2, in two ways (the one-sided estimate of
equation 8 of the paper, and annealed importance sampling from the vacuum generator to either target); and the
(phi, psi) profile in vacuum. The other side runs parallel tempering under each energy function and solves MBAR over
all temperatures of both; its intervals come from leaving out blocks of ladders. Both sides are of the domain of the
structure (trans amides). The run is a finished ``boltzgen run systems/alanine_dipeptide.pdb``; it is made if it is not
there. Every stage leaves a file in --work, and a stage whose file is there is not repeated.

Writes benchmarks/results/alanine.md and alanine.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import Table
from targets import versions
from tempering_mbar import Tempered, jackknife, temper

from boltzgen import free_energy as fe
from boltzgen.energy import potential as choose_potential
from boltzgen.ensemble import Ensemble
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.output_files import write_json
from boltzgen.sampling import annealed_importance, shipped_reference

ROOT = Path(__file__).resolve().parent.parent
PDB = "systems/alanine_dipeptide.pdb"
BASIN = {"C7ax": "0 < phi < 150"}
RESULTS = ROOT / "benchmarks" / "results"
EDGES = np.linspace(-180, 180, 37)
BLOCK = 100_000
SHOWN_KT = 6.0  # cells of the profile up to this height are compared


def generated(generator: BoltzmannGenerator, implicit: Molecule, n: int) -> dict[str, Any]:
    """All estimates from samples of the generator."""
    begin = time.monotonic()
    ensemble = Ensemble.concatenate([generator.sample(min(BLOCK, n - k)) for k in range(0, n, BLOCK)])
    basin = ensemble.free_energy(BASIN)["C7ax"]
    profile = ensemble.profile("phi", "psi", bins=len(EDGES) - 1)
    values = {
        "n": len(ensemble),
        "ess": ensemble.ess_fraction,
        "pareto_k": ensemble.pareto_k,
        "basin": [basin.value, basin.half_width, str(basin.verdict.verdict)],
        "probability": profile.probability.tolist(),
        "log_half_width": profile.half_width.tolist(),
    }
    perturbed = fe.perturb(ensemble, implicit)
    values["one_sided"] = [perturbed.value, perturbed.half_width, perturbed.verdict.verdict, perturbed.ess_fraction]
    values["log_z"] = [ensemble.log_z.value, ensemble.log_z.half_width]
    return values | {"seconds": time.monotonic() - begin}


def annealed(generator: BoltzmannGenerator, implicit: Molecule, log_z: list[float]) -> dict[str, Any]:
    """ΔF to the other energy function from log Z of both."""
    begin = time.monotonic()
    target = BoltzmannGenerator(generator.flow, choose_potential(implicit), molecule=implicit, seed=generator.seed)
    moved = annealed_importance(target, 1000, 20, n_leapfrog=3, seed=11)
    found = moved.log_z
    return {
        "value": [log_z[0] - found.value, math.hypot(log_z[1], found.half_width), found.verdict.verdict],
        "evaluations": moved.evaluations,
        "levels": len(moved.record["schedule"]),
        "seconds": time.monotonic() - begin,
    }


def stage(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file says, or else what the work finds, which is then written to it."""
    if not path.exists():
        write_json(path, work())
        print(f"{path.name} is written", flush=True)
    return dict(json.loads(path.read_text()))


def tempered(path: Path, molecule: Molecule, other: Molecule, evaluations: float, seed: int) -> Tempered:
    """Parallel tempering, or what the file says of it."""
    if not path.exists():
        found = temper(molecule, choose_potential(other), evaluations, seed)
        found.save(path)
        print(f"{path.name} is written: {found.evaluations:.3g} evaluations in {found.seconds:.0f} s", flush=True)
    return Tempered.load(path)


def trained(folder: Path) -> tuple[BoltzmannGenerator, int]:
    """A generator, and the evaluations that its training took."""
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "boltzgen", "run", PDB, "--out", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    result = json.loads((folder / "result.json").read_text())
    generator = BoltzmannGenerator.load(folder / "model.safetensors")
    return generator, result["energy_evaluations"] - result["n_samples"]


def compared_profiles(
    ours: dict[str, Any], whole: dict[str, np.ndarray], half: dict[str, np.ndarray]
) -> dict[str, float]:
    """Differences of -ln P over the cells that both know, up to `SHOWN_KT` above the lowest."""
    p, band = np.array(ours["probability"]), np.array(ours["log_half_width"], dtype=float)
    theirs, their_band = whole["profile"], half["profile"]
    with np.errstate(divide="ignore", invalid="ignore"):
        height = -np.log(theirs / theirs.max())
        difference = np.log(theirs) - np.log(p)
    chosen = (height < SHOWN_KT) & np.isfinite(difference) & np.isfinite(band) & np.isfinite(their_band)
    joint = np.hypot(band, their_band)[chosen]
    return {
        "cells": int(chosen.sum()),
        "cells_unknown_to_one": int(((height < SHOWN_KT) & ~chosen).sum()),
        "within": float((np.abs(difference[chosen]) <= joint).mean()),
        "rms": float(np.sqrt(np.square(difference[chosen]).mean())),
        "largest": float(np.abs(difference[chosen]).max()),
        "median_half_width": float(np.median(band[chosen])),
        "median_half_width_mbar": float(np.median(their_band[chosen])),
        "total_variation": float(0.5 * np.abs(p - theirs).sum()),
    }


def table_of(
    ours: dict[str, Any],
    moved: dict[str, Any],
    runs: tuple[Tempered, Tempered],
    training: int,
    shipped: dict[str, Any] | None,
) -> tuple[Table, dict[str, Any]]:
    """The table, and its figures for JSON."""
    whole, half = jackknife(*runs, EDGES)
    p = float(whole["basin"])
    mbar_basin = [-math.log(p / (1 - p)), float(half["basin"])]
    mbar_delta = [float(whole["delta_f"]), float(half["delta_f"])]
    profiles = compared_profiles(ours, whole, half)
    tempering = sum(one.evaluations + one.cross for one in runs)
    sampled = training + ours["n"]
    columns = ("quantity", "generator", "evaluations", "MBAR", "evaluations", "difference", "within joint 95 %")
    table = Table("Alanine dipeptide, CHARMM36m, 300 K: generator and MBAR on parallel tempering", columns)
    rows = (
        ("ΔF(C7ax), vacuum, kT", ours["basin"], sampled, mbar_basin),
        ("ΔF vacuum to OBC2, one-sided (eq. 8), kT", ours["one_sided"], sampled + ours["n"], mbar_delta),
        ("ΔF vacuum to OBC2, annealed importance, kT", moved["value"], sampled + moved["evaluations"], mbar_delta),
    )
    figures = {}
    for name, found, spent, theirs in rows:
        difference, joint = found[0] - theirs[0], math.hypot(found[1], theirs[1])
        agrees = bool(abs(difference) <= joint)
        table.rows.append(
            [name, _with(found), f"{spent:.3g}", _with(theirs), f"{tempering:.3g}", f"{difference:+.3f}", _yes(agrees)]
        )
        figures[name] = {"generator": found[:2], "verdict": found[2], "evaluations": spent, "mbar": theirs}
        figures[name] |= {"difference": difference, "joint_half_width": joint, "agrees": agrees}
    table.rows.append(
        [
            f"(phi, psi) profile, {profiles['cells']} cells, median half-width, kT",
            f"± {profiles['median_half_width']:.3f}",
            f"{sampled:.3g}",
            f"± {profiles['median_half_width_mbar']:.3f}",
            f"{tempering:.3g}",
            f"rms {profiles['rms']:.3f}",
            f"{profiles['within']:.1%} of cells",
        ]
    )
    table.notes = [
        "`python benchmarks/alanine_table.py`; intervals are 95 %; no weight is clipped",
        f"generator: {training:,} evaluations of training, {ours['n']:,} samples with an ESS of {ours['ess']:.1%}; "
        f"the one-sided estimate keeps {ours['one_sided'][3]:.2%} under OBC2 and is judged "
        f'"{ours["one_sided"][2]}"; annealed importance has {moved["levels"]} places on its path and is judged '
        f'"{moved["value"][2]}"',
        f"parallel tempering: 8 temperatures to 1200 K, 64 ladders, 1 fs, {runs[0].evaluations:,} evaluations with "
        f"forces in vacuum and {runs[1].evaluations:,} in OBC2, and {runs[0].cross + runs[1].cross:,} of the frames "
        "under the other energy; every row uses both",
        f"profile: cells of 10 by 10 degrees within {SHOWN_KT:g} kT of the lowest; {profiles['cells_unknown_to_one']} "
        f"more hold no sample or a single one on one side; total variation {profiles['total_variation']:.4f}; largest "
        f"difference {profiles['largest']:.2f} kT",
    ]
    if shipped is not None:
        table.notes.append(
            f"converged reference of ΔF(C7ax): {shipped['delta_f_kT']:.3f} ± {shipped['half_width_kT']:.3f} kT "
            f"({shipped['energy_evaluations']:.2g} evaluations; `python benchmarks/reference.py`)"
        )
    return table, figures | {"profile": profiles, "tempering_evaluations": tempering}


def _with(value: list[Any]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> None:
    """Compute what is not there, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo_seeds" / "seed0")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "alanine_table")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--vacuum", type=float, default=2e7, help="evaluations of parallel tempering in vacuum")
    parser.add_argument("--obc2", type=float, default=1e7, help="evaluations of parallel tempering in OBC2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    generator, training = trained(options.run)
    vacuum = generator.molecule
    assert vacuum is not None
    implicit = Molecule.from_pdb(ROOT / PDB, solvent="obc2")
    ours = stage(options.work / "generated.json", lambda: generated(generator, implicit, options.samples))
    moved = stage(options.work / "annealed.json", lambda: annealed(generator, implicit, ours["log_z"]))
    runs = (
        tempered(options.work / "vacuum.npz", vacuum, implicit, options.vacuum, options.seed),
        tempered(options.work / "obc2.npz", implicit, vacuum, options.obc2, options.seed + 1),
    )
    reference = shipped_reference(vacuum)
    table, figures = table_of(ours, moved, runs, training, reference and reference.free_energies["C7ax"])
    seconds = ours["seconds"] + moved["seconds"] + sum(one.seconds for one in runs)
    table.notes.append(f"{seconds:.0f} s in all for the stages, the training aside; one thread")
    (options.results / "alanine.md").write_text(table.markdown())
    record = {"date": date.today().isoformat(), "versions": versions(), "table": table.as_dict(), "figures": figures}
    write_json(options.results / "alanine.json", record)
    print(table.markdown(), f"{time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
