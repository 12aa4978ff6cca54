"""The experiments by name, and how one of them is run and written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boltzgen.reproduce.report import Report

__all__ = ["EXPERIMENTS", "SCALES", "Experiment", "find_experiment", "reproduce"]

SCALES = ("quick", "paper")


@dataclass(frozen=True)
class Experiment:
    """An experiment by name.

    Attributes
    ----------
    name : str
        Of its files too.
    module : str
        Holds ``SETTINGS`` by scale, and ``run(settings, seeds, folder, say, scale) -> Report``.
    summary : str
        One line for the help text.
    """

    name: str
    module: str
    summary: str


_ALL = (
    Experiment("double-well", "boltzgen.reproduce.double_well", "figure 1: which losses keep the minor mode"),
    Experiment("butane", "boltzgen.reproduce.butane", "figure 2: KL_x spreads and loses the gauche modes"),
    Experiment("dialanine", "boltzgen.reproduce.dialanine", "figures 3 to 5: which losses keep the minor mode"),
    Experiment("hydrogens", "boltzgen.reproduce.hydrogens", "what hydrogens at their minimum change; equation 32"),
    Experiment("beyond", "boltzgen.reproduce.beyond", "hydrogens from a flow; internal beside Cartesian coordinates"),
    Experiment(
        "propositions",
        "boltzgen.reproduce.propositions",
        "appendix I: unnormalised KL, and the variance of minibatch gradients",
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def find_experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises
    ------
    ValueError
        If there is none of that name; names the nearest one.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    near = get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown experiment {name!r}: choose one of {', '.join(EXPERIMENTS)}{hint}")


def reproduce(
    name: str,
    *,
    scale: str = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    out: str | os.PathLike[str] = "reproduced",
    command: str = "",
    say: Callable[[str], None] | None = None,
) -> Report:
    """Run an experiment, and write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into a folder.

    Trainings leave checkpoints in ``OUT/checkpoints``: the same call goes on from them, and gives what an unbroken run
    gives (on one thread to the last bit).

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    scale : {"quick", "paper"}
        Minutes on one core, or the iteration counts of the paper.
    seeds : sequence of int
        A claim is reproduced if it holds in every one of them.
    out : path-like
        May exist; files of the same names are replaced.
    command : str
        How this was called, for the record.
    say : callable, optional
        Takes a line of progress for every curve; without it there are none.

    Raises
    ------
    ValueError
        If the name or the scale is unknown, or there is no seed, or one twice.
    OutputError
        If the folder cannot be written.
    CheckpointError
        If a checkpoint in the folder is of other settings or another version.
    RunInterrupted
        After Ctrl-C or SIGTERM, when the state is written.
    """
    experiment = find_experiment(name)
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"give at least one seed, and each once, not {list(seeds)}")
    from boltzgen.output_files import OutputFolder

    folder = OutputFolder(out, resume=True)
    folder.claim()
    module = import_module(experiment.module)
    report = module.run(module.SETTINGS[scale], tuple(seeds), folder.path, say or (lambda line: None), scale=scale)
    report.write(folder.path, command)
    return report
