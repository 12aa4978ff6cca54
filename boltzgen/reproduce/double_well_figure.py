"""Figure 1 of the paper, drawn from what was found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from boltzgen.plotting.style import Array, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from boltzgen.energy.analytic import DoubleWell
    from boltzgen.reproduce.curves import Curve

__all__ = ["COLOURS", "Cloud", "draw"]

# Those of the paper in shades that the colour-blind tell apart (Wong 2011; indigo of Tol 2021). Lines after the
# complete pre-training are dashed.
DATA = "#E69F00"
COLOURS = {
    "partial": "#CC79A7",
    "complete": "#CC79A7",
    "kl-x-partial": "#0072B2",
    "kl-x-complete": "#332288",
    "kl-z-df-partial": "#56B4E9",
    "kl-z-df-complete": "#56B4E9",
    "l2+-partial": "#009E73",
    "l2+-complete": "#009E73",
}
PANELS = {
    "c": ("partial", "partial pre-training"),
    "d": ("kl-x-partial", "KL_x after (c)"),
    "e": ("complete", "complete pre-training"),
    "f": ("kl-x-complete", "KL_x after (e)"),
}


@dataclass(frozen=True)
class Cloud:
    """Samples as points.

    Attributes
    ----------
    first, second : (n,) array
        The bimodal coordinate, and the first of the others.
    energy : (n,) array
        Reduced energy.
    """

    first: Array
    second: Array
    energy: Array


def draw(
    target: DoubleWell,
    curves: Mapping[int, Mapping[str, Curve]],
    clouds: Mapping[str, Cloud],
    labels: Mapping[str, str],
    shown_seed: int,
) -> Figure:
    """Panels (a) to (f) of figure 1; (b) with two losses that the paper does not show.

    Parameters
    ----------
    target : DoubleWell
    curves : {seed: {name: Curve}}
        With the figure "minor", in percent.
    clouds : {name: Cloud}
        "dataset", "partial", "complete", and the ends of curves by name.
    labels : {name: text}
    shown_seed : int
        That of the clouds.
    """
    figure, axes = plt.subplot_mosaic("abbb;cdef", figsize=(11.0, 6.4), layout="constrained")
    for name, ax in axes.items():
        plain(ax)
        ax.set_title(f"({name})", loc="left", fontsize="small", fontweight="bold")
    _projection(axes["a"], clouds["dataset"])
    _minor_mode(axes["b"], target, curves, labels)
    top = 1.1 * float(clouds["dataset"].energy.max()) + 5
    for panel, (name, title) in PANELS.items():
        _energies(axes[panel], clouds["dataset"], clouds[name], COLOURS[name], title, top)
    axes["c"].set_ylabel("reduced energy u")
    figure.suptitle(
        f"Felardos et al. (2022), figure 1, run again; (c) to (f): seed {shown_seed}, data in orange", fontsize="medium"
    )
    return figure


def _projection(ax: Axes, data: Cloud) -> None:
    ax.plot(data.first, data.second, ".", color=DATA, markersize=1.5)
    ax.set_title("dataset", fontsize="small")
    ax.set_xlabel("x1 (bimodal)")
    ax.set_ylabel("x2 (normal)")


def _minor_mode(
    ax: Axes, target: DoubleWell, curves: Mapping[int, Mapping[str, Curve]], labels: Mapping[str, str]
) -> None:
    true = 100 * target.minor_population
    ax.axhline(true, color=DATA, linewidth=2.0, label=f"true, {true:.2f} %")
    named = set()
    for found in curves.values():
        for name, curve in found.items():
            label = None if name in named else labels[name]
            named.add(name)
            values = curve.values["minor"]
            ax.plot(
                curve.steps,
                values,
                color=COLOURS[name],
                linestyle="--" if name.endswith("complete") else "-",
                linewidth=0.9,
                label=label,
            )
            if curve.failed is not None:
                ax.plot(curve.steps[-1:], values[-1:], "x", color=COLOURS[name])
    largest = max(max(curve.values["minor"]) for found in curves.values() for curve in found.values())
    ax.set_ylim(0, 1.35 * max(largest, true))  # the legend stands above every curve
    ax.set_xlim(left=0)
    ax.set_xlabel("iterations of the refinement")
    ax.set_ylabel("minor mode / %")
    ax.set_title(f"samples in the minor mode, {len(curves)} seeds", fontsize="small")
    ax.legend(fontsize="x-small", frameon=False, loc="upper center", ncols=3)


def _energies(ax: Axes, data: Cloud, generated: Cloud, colour: str, title: str, top: float) -> None:
    ax.plot(data.first, data.energy, ".", color=DATA, markersize=1.5)
    ax.plot(generated.first, generated.energy, ".", color=colour, markersize=1.5)
    ax.set_ylim(float(data.energy.min()) - 3, top)
    ax.set_xlim(-3.2, 3.2)
    outside = int(np.sum(~(generated.energy <= top) | ~(np.abs(generated.first) <= 3.2)))
    if outside:
        ax.annotate(
            f"{outside} of {len(generated.energy):,} outside",
            (0.03, 0.93),
            xycoords="axes fraction",
            fontsize="x-small",
        )
    ax.set_title(title, fontsize="small")
    ax.set_xlabel("x1 (bimodal)")
