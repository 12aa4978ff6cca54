"""The energy engine against OpenMM: accuracy, speed, bad samples, scaling, first call.

    make bench-energy                (ten minutes on two cores; or: python benchmarks/energy.py [--threads 1])
    python benchmarks/energy.py --quick     (a minute: the dipeptide in vacuum only, nothing is written)

Prints its tables and writes them to benchmarks/results/energy.md and energy.json. The two sides of every ratio are
measured in the same run, taking turns, and the shortest time of each counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accuracy
import bad_samples
import numpy as np
import openmm
import torch
from openmm_calls import new_context, tight_loop
from tables import Table, interleaved

from boltzgen.energy import CompiledPotential, OpenMMPotential, simplify
from boltzgen.energy.verify import perturbed_frames
from boltzgen.molecule import Molecule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DIPEPTIDE = ROOT / "systems" / "alanine_dipeptide.pdb"
CHIGNOLIN = ROOT / "tests" / "data" / "chignolin.pdb"
# Name, structure, solvent, batch, and the least ratios to be reached: energy only, energy and forces.
SYSTEMS = (
    ("alanine dipeptide, vacuum", DIPEPTIDE, None, 4096, (400, 100)),
    ("alanine dipeptide, OBC2", DIPEPTIDE, "obc2", 4096, (100, 30)),
    ("chignolin, vacuum", CHIGNOLIN, None, 1024, (30, 10)),
    ("chignolin, OBC2", CHIGNOLIN, "obc2", 1024, (30, 10)),
)
SCALING = (
    ("ACE-ALA-NME", DIPEPTIDE),
    ("ACE-ALA3-NME", ROOT / "tests" / "data" / "ace_ala3_nme.pdb"),
    ("ACE-ALA5-NME", ROOT / "tests" / "data" / "ace_ala5_nme.pdb"),
    ("chignolin", CHIGNOLIN),
    ("Trp-cage, extended", ROOT / "benchmarks" / "data" / "trp_cage.pdb"),
)
BATCHES = (1024, 4096, 16384)
SEEDS = {"accuracy": accuracy.SEED, "speed": 2, "bad samples": bad_samples.SEED}


def speed(
    name: str, molecule: Molecule, batch: int, aims: tuple[int, int], options: argparse.Namespace
) -> tuple[Table, list[Any]]:
    """Microseconds per configuration of every way to evaluate one System, and a line for the summary."""
    frames = perturbed_frames(molecule.positions, batch, seed=SEEDS["speed"])
    rows: list[tuple[str, Callable[[], object], Callable[[], object], int]] = []

    def add_loop(label: str, system: openmm.System) -> list[int]:
        indices = []
        for kind in platforms():
            context = new_context(system, kind, options.threads)
            begin = time.perf_counter()
            tight_loop(context, frames[:4], True)()
            n = int(np.clip(0.05 / ((time.perf_counter() - begin) / 4), 8, 200))
            few = frames[:n]
            indices.append(len(rows))
            rows.append((f"loop, {label}, {kind}", tight_loop(context, few, False), tight_loop(context, few, True), n))
        return indices

    created = add_loop("as created", molecule.system)
    simplified = add_loop("simplified", simplify(molecule.system, molecule.positions))
    bridge = OpenMMPotential(molecule, workers=2)
    few = torch.from_numpy(frames[: 8 * rows[-1][3]])
    rows.append(("OpenMMPotential(workers=2)", lambda: bridge(few), lambda: bridge.energy_and_forces(few), len(few)))
    reasons: list[str] = []
    in_double = batch > 1024 and not options.quick  # float64 is compiled too, where that does not take long
    for dtype, modes in ((torch.float64, (False, in_double)), (torch.float32, (False, True))):
        x = torch.from_numpy(frames).to(dtype)
        for mode in sorted(set(modes)):
            potential = CompiledPotential(molecule, compile=mode)
            rows.append(
                (
                    f"CompiledPotential, {str(dtype)[6:]}, {'torch.compile' if mode else 'eager'}",
                    lambda p=potential, x=x: p(x),  # type: ignore[misc]
                    lambda p=potential, x=x: p.energy_and_forces(x),  # type: ignore[misc]
                    batch,
                )
            )
            if mode:
                potential(x[:64]), potential.energy_and_forces(x[:64])
                reasons += [potential.compile_reason] if potential.compile_reason else []
    calls = [(row[kind], row[3]) for row in rows for kind in (1, 2)]
    times = interleaved(calls, options.seconds)  # type: ignore[arg-type]
    bridge.close()
    best, lean = fastest(times, created), fastest(times, simplified)
    table = Table(
        f"Speed: {name} ({molecule.topology.getNumAtoms()} atoms, B = {batch})",
        ("us per configuration", "energy", "ratio", "energy + forces", "ratio"),
    )
    for index, row in enumerate(rows):
        energy, both = times[2 * index], times[2 * index + 1]
        table.rows.append([row[0], energy, best[0] / energy, both, best[1] / both])
    ratios = [best[kind] / times[kind - 2] for kind in (0, 1)]
    versus_lean = [lean[kind] / times[kind - 2] for kind in (0, 1)]
    reached = "yes" if all(ratio >= aim for ratio, aim in zip(ratios, aims, strict=True)) else "no"
    summary = [name, times[-2], ratios[0], aims[0], times[-1], ratios[1], aims[1], reached, *versus_lean]
    table.notes = [
        "ratio: the fastest tight loop on the System as created, over this. OpenMM's loops run over "
        f"{min(row[3] for row in rows)} or more of the same frames.",
        f"OpenMMPotential: the simplified System on {bridge.platform}, in two processes of one thread.",
        *reasons,
    ]
    return table, summary


def fastest(times: list[float], rows: list[int]) -> tuple[float, float]:
    """Shortest times for energies, and for energies and forces; the latter give energies too."""
    both = min(times[2 * row + 1] for row in rows)
    return min(both, *(times[2 * row] for row in rows)), both


def platforms() -> list[str]:
    """OpenMM's platforms that work here."""
    return [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]


def in_fresh_process(what: str, structure: Path, options: argparse.Namespace, **environment: str) -> dict[str, Any]:
    """What benchmarks/fresh_process.py measures."""
    script = str(ROOT / "benchmarks" / "fresh_process.py")
    command = [sys.executable, script, what, str(structure), "--threads", str(options.threads)]
    command += ["--seconds", str(options.seconds), "--batches", *map(str, BATCHES)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}).stdout
    result: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return result


def scaling(options: argparse.Namespace) -> Table:
    """Time and memory against the number of atoms and the batch size."""
    columns = ["system, vacuum", "N", f"energy, B = {BATCHES[0]}", *(f"+ forces, B = {batch}" for batch in BATCHES)]
    columns += ["time, largest B / smallest", *(f"MiB, B = {batch}" for batch in BATCHES), "of it results"]
    table = Table("Scaling: compiled, float32", tuple(columns))
    for name, structure in SCALING:
        found = in_fresh_process("scaling", structure, options)
        times = found["forces"]
        linear = times[-1] * BATCHES[-1] / (times[0] * BATCHES[0])
        memory = found["memory"] if all(found["memory"]) else [(None, None)] * len(BATCHES)
        row = [name, found["atoms"], found["energy"], *times, linear]
        table.rows.append([*row, *(peak for peak, _ in memory), memory[-1][1]])
    table.notes = [
        "Times in us per configuration, in a process of its own for each system. The time of a batch that is "
        f"{BATCHES[-1] // BATCHES[0]} times as large would be {BATCHES[-1] / BATCHES[0]:.0f} times as long.",
        "MiB: peak resident memory of the process during one call with forces; the interpreter and torch take most of "
        "it, and the positions of the largest batch are there throughout. Results: energies and forces of the largest.",
    ]
    return table


def first_calls(options: argparse.Namespace) -> Table:
    """Seconds of the first compiled call, without and with what an earlier process left in torch's cache."""
    table = Table("First call: alanine dipeptide, vacuum, float32", ("seconds", "energy", "then energy + forces"))
    with tempfile.TemporaryDirectory() as cache:
        for label in ("nothing cached", "cached by an earlier process"):
            found = in_fresh_process("first-call", DIPEPTIDE, options, TORCHINDUCTOR_CACHE_DIR=cache)
            table.rows.append([label, found["energy"], found["forces"]])
    table.notes = ["Each program is compiled once for all batch sizes; importing torch is not counted."]
    return table


def run_record(options: argparse.Namespace) -> dict[str, Any]:
    """What ran, where and when."""
    return {
        "command": " ".join(["python", "benchmarks/energy.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "openmm": openmm.__version__,
        "platforms": platforms(),
        "force field": "charmm36m",
        "seeds": SEEDS,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load average at the start": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def commit() -> str | None:
    """Short hash of the checkout, with a + where the package differs from it; None outside of a checkout."""
    try:
        git = lambda *words: subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "boltzgen") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def all_tables(options: argparse.Namespace) -> Iterator[Table]:
    """One after the other, as they are measured."""
    summary = Table(
        "Summary: CompiledPotential (float32, torch.compile) against the tightest loop on the System as created",
        ("system", "us, energy", "ratio", "aim", "us, + forces", "ratio", "aim", "reached")
        + ("energy / simplified", "+ forces / simplified"),
    )
    summary.notes = [
        "The last two columns: the same loop on the simplified System (`bg.energy.simplify`), best platform, over ours."
    ]
    for name, structure, solvent, batch, aims in SYSTEMS[: 1 if options.quick else None]:
        molecule = Molecule.from_pdb(structure, solvent=solvent)
        yield accuracy.accuracy(name, molecule)
        table, line = speed(name, molecule, batch, aims, options)
        summary.rows.append(line)
        yield table
    yield summary
    yield from bad_samples.bad_sample_tables(
        Molecule.from_pdb(DIPEPTIDE), options.threads, options.seconds, options.quick
    )
    if not options.quick:
        yield scaling(options)
        yield first_calls(options)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenMM's CPU platform")
    parser.add_argument("--seconds", type=float, default=None, help="per measurement; 0.6, or 0.2 with --quick")
    parser.add_argument("--quick", action="store_true", help="the dipeptide in vacuum only; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for energy.md and energy.json")
    options = parser.parse_args()
    options.seconds = options.seconds or (0.2 if options.quick else 0.6)
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    record, tables = run_record(options), []
    print("\n".join(f"{key}: {value}" for key, value in record.items()), "\n", flush=True)
    for table in all_tables(options):
        print(table.markdown(), flush=True)
        tables.append(table)
    record["seconds in all"] = round(time.perf_counter() - begin)
    print(f"{record['seconds in all']} s in all")
    if options.quick:
        return
    notes = "\n".join(f"- {key}: {value}" for key, value in record.items())
    text = "\n".join(["# The energy engine against OpenMM", "", notes, "", *(table.markdown() for table in tables)])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "energy.md").write_text(text.rstrip() + "\n")
    content = {"run": record, "tables": [table.as_dict() for table in tables]}
    (options.out / "energy.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
