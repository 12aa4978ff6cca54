"""Calibration: how often nominal 95 % intervals hold the truth, and how often verdicts are right, on analytic targets.

    python benchmarks/calibration.py [--repetitions 2000] [--seed 0] [--only NAME] [--write]

Every estimator of `boltzgen.free_energy`, and the samplers that start from a generator, are repeated on a Gaussian
mixture, a harmonic molecule and a many-well target, with new samples each time. Counted is the share of repetitions
whose interval holds the true value, which comes from closed forms or quadrature. Profiles count all cells in which ten
samples or more are expected. Verdicts: "usable" where the generator covers every mode, and "do not use" where one mode
was taken out of the generator; reference samples are given to both.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openmm
import pymbar
import scipy
import torch
from calibration_counts import Counts
from calibration_estimators import harmonic, many_well, mixture, multistate
from calibration_samplers import chains, latent, latent_of_molecule, particles
from calibration_verdicts import verdicts

import boltzgen

RESULT = Path(__file__).resolve().parent / "results" / "calibration.txt"
PARTS: dict[str, Callable[[int, int], Iterator[Counts]]] = {
    "Gaussian mixture, 600 samples": mixture,
    "Gaussian mixture, MBAR": multistate,
    "Gaussian mixture, particles from a poor generator": particles,
    "Gaussian mixture, chains from a poor generator": chains,
    "Gaussian mixture, latent chains of a curved flow": latent,
    "many-well, 1,000 samples": many_well,
    "harmonic molecule, 600 samples": harmonic,
    "harmonic molecule, latent chains": latent_of_molecule,
}


def main() -> None:
    """Repeat, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a table")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULT.name}")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is for all tables: leave out --only")
    begin, lines = time.time(), [header(options)]

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    print(lines[0])
    for title, part in PARTS.items():
        if options.only in title:
            say(f"\n{title}\n{'estimator':<52} {'n':>5}  held   (95 % of that)     bias/sd  width/sd")
            for counts in part(options.repetitions, options.seed):
                for count in counts.values():
                    say(count.row())
    if options.only in "verdicts":
        say(
            "\nverdicts on 1,000 samples with 500 reference samples\n"
            f"{'generator':<44} {'true ESS':>8}  {'right':<12} {'given':>8}"
        )
        for row in verdicts(options.repetitions, options.seed):
            say(row)
    say(f"\n{time.time() - begin:.0f} s")
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def header(options: argparse.Namespace) -> str:
    """Command, versions, date and seed."""
    command = " ".join(["python", "benchmarks/calibration.py", *sys.argv[1:]])
    modules = (boltzgen, torch, np, scipy, openmm, pymbar)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    return f"{command}\n{datetime.date.today()}; {versions}; seed {options.seed}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
