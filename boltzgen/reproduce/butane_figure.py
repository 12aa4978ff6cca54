"""Figure 2 of the paper, drawn from what was found here, with a row for L2+ that the paper does not show."""

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

    from boltzgen.reproduce.curves import Curve
    from boltzgen.reproduce.frames import Share
    from boltzgen.reproduce.molecule_curves import Cloud

__all__ = ["COLOURS", "Drawn", "draw"]

DATA = "#E69F00"
COLOURS = {"start": "#CC79A7", "kl-x": "#0072B2", "kl-z-df": "#56B4E9", "l2+": "#009E73"}
PANELS = {"kl-x": ("c", "d", "e", "f"), "kl-z-df": ("g", "h", "i", "j"), "l2+": ("k", "l", "m", "n")}
LARGEST = 40.0  # kT above the lowest energy of the data


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a row of panels shows of one generator.

    Attributes
    ----------
    samples, data : Cloud
        Both with U_G under this generator.
    samples_angle, data_angle : (n,) array
        Dihedral in degrees, 0 to 360.
    """

    samples: Cloud
    data: Cloud
    samples_angle: Array
    data_angle: Array


def draw(
    curves: Mapping[int, Mapping[str, Curve]],
    drawn: Mapping[str, Drawn],
    solid: Mapping[str, Share],
    dashed: Mapping[str, Share],
    labels: Mapping[str, str],
    shown_seed: int,
) -> Figure:
    """Panels (b) to (j) of figure 2; (a) shows the dihedral of the data, and (k) to (n) are for L2+.

    Parameters
    ----------
    curves : {seed: {name: Curve}}
        With the percentages of the modes.
    drawn : {name: Drawn}
        The pre-trained generator as "start", and the ends of curves by name.
    solid, dashed : {mode: Share}
    labels : {name: text}
    shown_seed : int
        That of the clouds.
    """
    figure, axes = plt.subplot_mosaic("abbb;cdef;ghij;klmn", figsize=(12.0, 12.5), layout="constrained")
    for name, ax in axes.items():
        plain(ax)
        ax.set_title(f"({name})", loc="left", fontsize="small", fontweight="bold")
    _dihedrals(axes["a"], drawn["start"])
    _modes(axes["b"], curves, solid, dashed, labels)
    for name, (centres, energies, surprises, correlations) in PANELS.items():
        row = drawn[name]
        _centres(axes[centres], row, labels[name], COLOURS[name])
        _against_angle(axes[energies], row, "energy", "U_B / kT", COLOURS[name])
        _against_angle(axes[surprises], row, "surprise", "U_G", COLOURS[name])
        _correlation(axes[correlations], row, COLOURS[name])
    figure.suptitle(
        f"Felardos et al. (2022), figure 2, run again; (c) to (n): seed {shown_seed}, data in orange",
        fontsize="medium",
    )
    return figure


def _dihedrals(ax: Axes, start: Drawn) -> None:
    bins = np.linspace(0, 360, 49).tolist()
    ax.hist(start.data_angle, bins, density=True, color=DATA, alpha=0.6, label="data")
    ax.hist(start.samples_angle, bins, density=True, color=COLOURS["start"], histtype="step", label="pre-trained")
    ax.set_xlabel("dihedral / degrees")
    ax.set_yticks([])
    ax.legend(fontsize="x-small", frameon=False)


def _modes(
    ax: Axes,
    curves: Mapping[int, Mapping[str, Curve]],
    solid: Mapping[str, Share],
    dashed: Mapping[str, Share],
    labels: Mapping[str, str],
) -> None:
    for shares, style, what in ((solid, "-", "true"), (dashed, "--", "hydrogens at their minimum")):
        both = shares["gauche+"].percent + shares["gauche-"].percent
        ax.axhline(both / 2, color=DATA, linestyle=style, linewidth=2.0, label=f"{what}, {both / 2:.1f} %")
    named = set()
    for some in curves.values():
        for name, curve in some.items():
            for mode, style in (("gauche+", "-"), ("gauche-", ":")):
                label = None if (name, mode) in named else f"{labels[name]}, {mode}"
                named.add((name, mode))
                ax.plot(curve.steps, curve.values[mode], style, color=COLOURS[name], linewidth=0.9, label=label)
    highest = max(max(c.values[m]) for some in curves.values() for c in some.values() for m in ("gauche+", "gauche-"))
    ax.set_ylim(0, 1.4 * max(highest, solid["gauche+"].percent, 1.0))
    ax.set_xlim(left=0)
    ax.set_xlabel("iterations of the refinement")
    ax.set_ylabel("gauche / %")
    ax.set_title(f"samples in either minor mode, {len(curves)} seeds", fontsize="small")
    ax.legend(fontsize="x-small", frameon=False, loc="upper center", ncols=4)


def _centres(ax: Axes, row: Drawn, label: str, colour: str) -> None:
    for cloud, shade in ((row.samples, colour), (row.data, DATA)):
        centre = cloud.heavy.mean(1)
        ax.plot(centre[:, 0], centre[:, 1], ".", color=shade, markersize=1.5)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(f"{label}: centres", fontsize="small")
    ax.set_xlabel("x / nm")
    ax.set_ylabel("y / nm")


def _against_angle(ax: Axes, row: Drawn, what: str, label: str, colour: str) -> None:
    data, samples = getattr(row.data, what), getattr(row.samples, what)
    ax.plot(row.samples_angle, samples, ".", color=colour, markersize=1.5)
    ax.plot(row.data_angle, data, ".", color=DATA, markersize=1.5)
    low = float(min(np.nanmin(data), np.nanmin(samples)))
    high = low + LARGEST if what == "energy" else float(np.nanquantile(np.concatenate([data, samples]), 0.995))
    ax.set_ylim(low - 1, high + 1)
    _outside(ax, samples, high + 1)
    ax.set_xlabel("dihedral / degrees")
    ax.set_ylabel(label)


def _correlation(ax: Axes, row: Drawn, colour: str) -> None:
    ax.plot(row.samples.surprise, row.samples.energy, ".", color=colour, markersize=1.5)
    low = float(np.nanmin(row.samples.energy))
    ax.set_ylim(low - 1, low + LARGEST)
    _outside(ax, row.samples.energy, low + LARGEST)
    ax.set_xlabel("U_G")
    ax.set_ylabel("U_B / kT")


def _outside(ax: Axes, values: Array, high: float) -> None:
    n = int(np.sum(~(values <= high)))
    if n:
        ax.annotate(f"{n} of {len(values):,} above", (0.03, 0.93), xycoords="axes fraction", fontsize="x-small")
