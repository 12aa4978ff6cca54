"""Batches with 1 % bad samples: bgflow's and boltzkit's ways of calling OpenMM, and ours, side by side."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openmm_calls import ChunkPerWorker, MessagePerSample, NoAnswerError, OneContext
from tables import Table, interleaved

from boltzgen.energy import CompiledPotential, OpenMMPotential
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.molecule import Molecule

__all__ = ["bad_sample_tables"]

WORKERS = 2
SEED = 5
# Single precision of OpenMM's CPU platform and of float32, at energies below 1e4 kJ/mol.
WRONG_ABOVE = 0.1  # kJ/mol
PATIENCE = 20.0  # seconds
Floats = NDArray[np.float64]
# Energies (B,) of positions (B, N, 3), with or without forces.
Evaluation = Callable[[Floats, bool], Floats]


def bad_sample_tables(molecule: Molecule, threads: int, seconds: float, quick: bool) -> Iterator[Table]:
    """Speed and correctness of each way, and what becomes of the bad samples."""
    clean, expected = good_frames(molecule, 256 if quick else 1024)
    mixed, undefined, coincident = with_bad_samples(clean)
    ways, closing = all_ways(molecule, threads)
    answers: dict[str, Floats | str] = {}
    for name, evaluate in ways.items():
        evaluate(clean, True)
        answers[name] = attempt(evaluate, mixed)
    alive = [name for name in ways if not isinstance(answers[name], str)]
    calls = [(lambda w=w, f=f: w(clean, f), len(clean)) for w in ways.values() for f in (False, True)]
    calls += [(lambda w=ways[name]: w(mixed, True), len(mixed)) for name in alive]  # type: ignore[misc]
    times = interleaved(calls, seconds, rounds=3)
    for close in closing:
        close()
    yield speeds(ways, alive, times, threads)
    yield correctness(answers, expected, undefined, coincident)
    yield first_sample_bad(molecule, mixed[undefined[0]], threads)


def good_frames(molecule: Molecule, n: int) -> tuple[Floats, Floats]:
    """Frames (n, N, 3) below 1e4 kJ/mol in float32's positions, and their energies on OpenMM's Reference platform."""
    frames = perturbed_frames(molecule.positions, 2 * n, seed=SEED).astype(np.float32).astype(np.float64)
    total = np.sum(list(reference_terms(molecule.system, frames)[0].values()), axis=0)
    chosen = np.flatnonzero(np.abs(total) < 1e4)[:n]
    return frames[chosen], total[chosen]


def with_bad_samples(frames: Floats) -> tuple[Floats, list[int], list[int]]:
    """A copy with 1 % bad rows, none among the first: NaN coordinates, and two atoms in one place, in turn."""
    mixed = frames.copy()
    rows = np.linspace(0, len(frames), len(frames) // 100 + 2, dtype=int)[1:-1]
    undefined, coincident = rows[::2].tolist(), rows[1::2].tolist()
    mixed[undefined, 3, 1] = np.nan
    mixed[coincident, -1] = mixed[coincident, 0]
    return mixed, undefined, coincident


def all_ways(molecule: Molecule, threads: int) -> tuple[dict[str, Evaluation], list[Callable[[], None]]]:
    """Each way under its name, and what ends their processes."""
    serial = OneContext(molecule.system, threads)
    messages = MessagePerSample(molecule.system, WORKERS, threads, PATIENCE)
    chunks = ChunkPerWorker(molecule.system, WORKERS, None, PATIENCE)
    chunks_lean = ChunkPerWorker(molecule.system, WORKERS, threads, PATIENCE)
    bridge = OpenMMPotential(molecule, workers=WORKERS, threads=threads)
    compiled = CompiledPotential(molecule, compile=True)

    def ours(potential: Any, dtype: torch.dtype) -> Evaluation:
        def evaluate(frames: Floats, forces: bool) -> Floats:
            x = torch.from_numpy(frames).to(dtype)
            energy = potential.energy_and_forces(x)[0] if forces else potential(x)
            return np.asarray(energy.double())

        return evaluate

    ways: dict[str, Evaluation] = {
        "bgflow's way, 1 worker": lambda x, forces: serial(x)[0],
        "bgflow's way, 2 workers": lambda x, forces: messages(x)[0],
        "boltzkit's way, 2 workers, all cores each": lambda x, forces: chunks(x, forces)[0],
        f"boltzkit's way, 2 workers, {threads} thread each": lambda x, forces: chunks_lean(x, forces)[0],
        "OpenMMPotential(workers=2)": ours(bridge, torch.float64),
        "CompiledPotential, float32": ours(compiled, torch.float32),
    }
    return ways, [messages.close, chunks.close, chunks_lean.close, bridge.close]


def attempt(evaluate: Evaluation, frames: Floats) -> Floats | str:
    """Energies, or what came instead of them."""
    try:
        return evaluate(frames, True)
    except NoAnswerError as error:
        return str(error)
    except multiprocessing.TimeoutError:
        return f"no answer within {PATIENCE:.0f} s"
    except Exception as error:  # whatever an engine raises is the answer
        return f"{type(error).__name__}: {str(error).split('.')[0]}"


def speeds(ways: dict[str, Evaluation], alive: list[str], times: list[float], threads: int) -> Table:
    table = Table(
        "Ways of calling OpenMM: speed, alanine dipeptide, vacuum",
        ("us per configuration", "energy", "energy + forces", "+ forces, 1 % bad", "+ forces, over ours"),
    )
    ours = times[2 * len(ways) - 1]
    for index, name in enumerate(ways):
        bad = times[2 * len(ways) + alive.index(name)] if name in alive else None
        both = times[2 * index + 1]
        table.rows.append([name, times[2 * index], both, bad, both / ours])
    table.notes = [
        "bgflow's way always computes forces. The first four use the System as created on OpenMM's CPU platform; "
        f"CompiledPotential has {threads} thread(s) in one process, the others {WORKERS} processes where they say so.",
        "Restated in benchmarks/openmm_calls.py from the published behaviour. '-': the batch with bad samples came to "
        "nothing.",
    ]
    return table


def correctness(
    answers: dict[str, Floats | str], expected: Floats, undefined: list[int], coincident: list[int]
) -> Table:
    table = Table(
        f"Bad samples: {len(undefined)} with NaN and {len(coincident)} with coincident atoms among {len(expected)}",
        ("way", "good samples wrong", "good samples lost", "NaN coordinates return", "coincident atoms return"),
    )
    good = np.setdiff1d(np.arange(len(expected)), [*undefined, *coincident])
    for name, answer in answers.items():
        if isinstance(answer, str):
            table.rows.append([name, 0, f"{len(good)} of {len(good)}", answer, "the same"])
            continue
        lost = ~np.isfinite(answer[good])
        wrong = int((np.abs(answer[good] - expected[good])[~lost] > WRONG_ABOVE).sum())
        returned = [describe(answer, rows, good) for rows in (undefined, coincident)]
        table.rows.append([name, wrong, f"{lost.sum()} of {len(good)}", *returned])
    table.notes = [
        f"Wrong: more than {WRONG_ABOVE} kJ/mol from OpenMM Reference. What is right for a bad sample: NaN for "
        "undefined coordinates and +inf for an overlap, so that weights and counts tell them from the good ones.",
    ]
    return table


def describe(answer: Floats, rows: list[int], good: NDArray[np.int64]) -> str:
    """In words: what the bad rows of a batch came back as."""
    found: dict[str, int] = {}
    for row in rows:
        energy = answer[row]
        if np.isnan(energy):
            kind = "NaN"
        elif np.isinf(energy):
            kind = "+inf" if energy > 0 else "-inf"
        elif energy == 0:
            kind = "E = 0"
        elif np.any(answer[good] == energy):
            kind = "energy of another sample"
        else:
            kind = f"{energy:.3g} kJ/mol"
        found[kind] = found.get(kind, 0) + 1
    return ", ".join(f"{kind} ({count})" for kind, count in found.items())


def first_sample_bad(molecule: Molecule, bad: Floats, threads: int) -> Table:
    """A batch in which the first samples have NaN coordinates, sent to workers that have done nothing yet."""
    frames, _ = good_frames(molecule, 20)
    frames[:WORKERS] = bad
    table = Table("Bad samples first, in new workers: 2 with NaN coordinates of 20", ("way", "result"))
    messages = MessagePerSample(molecule.system, WORKERS, threads, PATIENCE)
    bridge = OpenMMPotential(molecule, workers=WORKERS, threads=threads)
    ways: dict[str, Evaluation] = {
        "bgflow's way, 2 workers": lambda x, forces: messages(x)[0],
        "OpenMMPotential(workers=2)": lambda x, forces: bridge.energy_and_forces(torch.from_numpy(x))[0].numpy(),
    }
    for name, evaluate in ways.items():
        begin = time.perf_counter()
        answer = attempt(evaluate, frames)
        taken = time.perf_counter() - begin
        finite = "" if isinstance(answer, str) else f"{np.isfinite(answer).sum()} energies, "
        text = answer if isinstance(answer, str) else f"{finite}{np.isnan(answer).sum()} NaN, in {taken:.1f} s"
        table.rows.append([name, text])
    messages.close()
    bridge.close()
    table.notes = [
        "The message-per-sample worker dies of a variable that was never set; its parent waits for ever.",
        "The time of OpenMMPotential includes the start of its workers.",
    ]
    return table
