"""Curves of generators with hydrogens from a flow: share of the minor mode, and ESS by evaluations and by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from boltzgen.plotting.style import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from boltzgen.reproduce.curves import Curve

__all__ = ["draw"]

COLOURS = {"internal": "#009E73", "cartesian": "#0072B2"}
TRUE = "#E69F00"


def draw(
    curves: Mapping[int, Mapping[str, Curve]], true: Mapping[str, float], labels: Mapping[str, str], batch_size: int
) -> Figure:
    """Three panels, every seed a line.

    Parameters
    ----------
    curves : {seed: {kind: Curve}}
    true : {kind: percent}
        True share of the minor mode, for either target.
    labels : {kind: text}
    batch_size : int
        Evaluations of a step.
    """
    figure, (minor, evaluations, seconds) = plt.subplots(1, 3, figsize=(12.0, 3.8), layout="constrained")
    for ax in (minor, evaluations, seconds):
        plain(ax)
    for kind, colour in COLOURS.items():
        minor.axhline(true[kind], color=TRUE, linestyle="-" if kind == "internal" else "-.", linewidth=1.8)
        for number, some in enumerate(curves.values()):
            curve, label = some[kind], labels[kind] if number == 0 else None
            steps = np.asarray(curve.steps)
            minor.plot(steps * batch_size / 1000, curve.values["minor"], color=colour, linewidth=1.0, label=label)
            evaluations.plot(steps * batch_size / 1000, curve.values["ess"], color=colour, linewidth=1.0)
            seconds.plot(curve.seconds * steps / steps[-1], curve.values["ess"], color=colour, linewidth=1.0)
    minor.set_ylabel("minor mode, as generated / %")
    minor.set_ylim(bottom=0)
    minor.legend(fontsize="x-small", frameon=False)
    for ax in (minor, evaluations):
        ax.set_xlabel("thousand evaluations of the refinement")
    seconds.set_xlabel("seconds of the refinement")
    for ax in (evaluations, seconds):
        ax.set_ylabel("ESS / %")
        ax.set_ylim(bottom=0)
    figure.suptitle(f"L2+ with hydrogens from a flow, {len(curves)} seeds; true share in orange", fontsize="medium")
    return figure
