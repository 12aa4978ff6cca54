"""Shares of a mode by every estimate, and how many effective samples each leaves, for butane and dialanine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from boltzgen.plotting.style import legend, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from boltzgen.reproduce.hydrogens import Outcome

__all__ = ["draw"]

COLOURS = ("#000000", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MODES = {"butane": "gauche", "dialanine": "minor mode"}
APART = 0.18  # between seeds
LINES = ("-", "--", ":")


def draw(outcomes: Mapping[str, Mapping[int, Outcome]]) -> Figure:
    """Two panels for every molecule.

    Parameters
    ----------
    outcomes : {molecule: {seed: Outcome}}
    """
    figure, axes = plt.subplots(2, len(outcomes), figsize=(5.2 * len(outcomes), 6.4), layout="constrained")
    for (name, some), (shares, effective) in zip(outcomes.items(), axes.T, strict=True):
        plain(shares)
        plain(effective)
        _shares(shares, some)
        shares.set_xlabel(f"{MODES[name]} of {name} / %")
        _effective(effective, some)
    figure.suptitle(f"Hydrogens at their minimum, {len(some)} seeds", fontsize="medium")
    return figure


def _shares(ax: Axes, outcomes: Mapping[int, Outcome]) -> None:
    names: list[str] = []
    for number, one in enumerate(outcomes.values()):
        names = list(one.shares)
        for row, (share, colour) in enumerate(zip(one.shares.values(), COLOURS, strict=True)):
            ax.errorbar(
                share.percent, row + APART * number, xerr=share.error, color=colour, marker="o", markersize=3, capsize=2
            )
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(left=0)


def _effective(ax: Axes, outcomes: Mapping[int, Outcome]) -> None:
    for number, one in enumerate(outcomes.values()):
        for (of, counts), colour in zip(one.effective.items(), COLOURS, strict=False):
            ax.loglog(
                list(counts),
                list(counts.values()),
                color=colour,
                linestyle=LINES[number % len(LINES)],
                linewidth=1.0,
                marker=".",
                label=of if number == 0 else None,
            )
    ax.set_xticks(sorted(next(iter(one.effective.values()))))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("frames")
    ax.set_ylabel("effective samples")
    legend(ax)
