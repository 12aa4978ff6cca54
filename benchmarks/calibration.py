"""Calibration: how often nominal 95 % intervals hold the truth, and how often verdicts are right, on analytic targets.

    python benchmarks/calibration.py [--repetitions 2000] [--seed 0] [--only NAME] [--write]

Every estimator of `boltzgen.free_energy`, and the samplers that start from a generator, are repeated on a Gaussian
mixture, a harmonic molecule and a many-well target, with new samples each time. Counted is the share of repetitions
whose interval holds the true value, which comes from closed forms or quadrature. Profiles count all cells in which ten
samples or more are expected. Verdicts: "usable" where the generator covers every mode, and "do not use" where one mode
was taken out of the generator; reference samples are given to both. --write replaces the tables that were run; each
says what it was made with.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openmm
import pymbar
import scipy
import torch
from calibration_estimators import basins, harmonic, harmonic_basins, many_well, mixture, multistate
from calibration_samplers import chains, latent, latent_of_molecule, moving_chains, particles, piloted_particles
from calibration_verdicts import verdicts

import boltzgen

RESULT = Path(__file__).resolve().parent / "results" / "calibration.txt"
PARTS = {
    "Gaussian mixture, 600 samples": mixture,
    "Gaussian mixture, energy and entropy of a basin, 600 samples": basins,
    "Gaussian mixture, MBAR": multistate,
    "Gaussian mixture, particles from a poor generator": particles,
    "Gaussian mixture, particles with Langevin moves along a path by a pilot": piloted_particles,
    "Gaussian mixture, chains of independent proposals": chains,
    "Gaussian mixture, chains with local moves": moving_chains,
    "Gaussian mixture, latent chains of a curved flow": latent,
    "many-well, 1,000 samples": many_well,
    "harmonic molecule, 600 samples": harmonic,
    "harmonic molecule, two basins, 600 samples": harmonic_basins,
    "harmonic molecule, latent chains": latent_of_molecule,
}
VERDICTS = "verdicts on 1,000 samples with 500 reference samples"
ESTIMATES_HEAD = f"{'estimator':<52} {'n':>5}  held   (95 % of that)     bias/sd  width/sd"
VERDICTS_HEAD = f"{'generator':<44} {'true ESS':>8}  {'right':<12} {'given':>8}"


def main() -> None:
    """Repeat, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a table")
    parser.add_argument("--write", action="store_true", help=f"also replace these tables in {RESULT.name}")
    options = parser.parse_args()
    chosen = [title for title in [*PARTS, VERDICTS] if options.only in title]
    if not chosen:
        parser.error(f"no table has {options.only!r} in its name: {'; '.join([*PARTS, VERDICTS])}")
    for title in chosen:
        begin, lines = time.time(), [title, *made_with(options)]
        for row in rows(title, options.repetitions, options.seed):
            print(row, flush=True)
            lines.append(row)
        print(f"{title}: {time.time() - begin:.0f} s\n", flush=True)
        if options.write:
            replace_table(title, "\n".join(lines))


def rows(title: str, repetitions: int, seed: int) -> Iterator[str]:
    """The lines of a table, its head first."""
    if title == VERDICTS:
        yield VERDICTS_HEAD
        yield from verdicts(repetitions, seed)
        return
    yield ESTIMATES_HEAD
    for counts in PARTS[title](repetitions, seed):
        yield from (count.row() for count in counts.values())


def made_with(options: argparse.Namespace) -> tuple[str, str]:
    """Command; date, versions and seed."""
    modules = (boltzgen, torch, np, scipy, openmm, pymbar)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    command = shlex.join(["python", "benchmarks/calibration.py", *sys.argv[1:]])
    return command, f"{datetime.date.today()}; {versions}; seed {options.seed}"


def replace_table(title: str, text: str) -> None:
    """Put a table into the file of results, whose tables are parted by empty lines and begin with their titles."""
    known = RESULT.read_text(encoding="utf-8").strip().split("\n\n") if RESULT.exists() else []
    tables = {table.split("\n", 1)[0]: table for table in known} | {title: text}
    ordered = [tables[name] for name in [*PARTS, VERDICTS] if name in tables]
    RESULT.write_text("\n\n".join(ordered) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
