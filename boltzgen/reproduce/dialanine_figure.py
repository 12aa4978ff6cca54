"""Figures 3, 4 and 5 of the paper on one sheet, drawn from what was found here."""

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

__all__ = ["COLOURS", "Shown", "draw"]

DATA = "#E69F00"
COLOURS = {
    "start": "#CC79A7",
    "kl-x": "#0072B2",
    "kl-z-df": "#56B4E9",
    "l2+": "#009E73",
    "l2+attached": "#332288",
    "log-variance": "#D55E00",
}
LARGEST = 60.0  # kT above the lowest energy of the data
LAYOUT = [
    ["3b", "3b", "3i", "3i"],
    ["3c1", "3c2", "3c3", "3c4"],
    ["3d", "3e", "3f", "3g"],
    ["3h", "4b", "4c", "4d"],
    ["4a", "5a", "5b", "5c"],
]


@dataclass(frozen=True, eq=False)
class Shown:
    """What panels show of one generator.

    Attributes
    ----------
    samples, data : Cloud
        Both with U_G under this generator.
    samples_angles, data_angles : (2, n) array
        phi and psi in degrees.
    """

    samples: Cloud
    data: Cloud
    samples_angles: Array
    data_angles: Array


def draw(
    curves: Mapping[int, Mapping[str, Curve]],
    shown: Mapping[str, Shown],
    solid: Share,
    dashed: Share,
    labels: Mapping[str, str],
    shown_seed: int,
) -> Figure:
    """Panels (b) to (i) of figure 3, and those of figures 4 and 5.

    Parameters
    ----------
    curves : {seed: {name: Curve}}
    shown : {name: Shown}
        The pre-trained generator as "start", and the ends of curves by name.
    solid, dashed : Share
        Of the minor mode.
    labels : {name: text}
    shown_seed : int
        That of the clouds.
    """
    figure, axes = plt.subplot_mosaic(LAYOUT, figsize=(13.0, 15.5), layout="constrained")
    for name, ax in axes.items():
        plain(ax)
        ax.set_title(f"({name})", loc="left", fontsize="small", fontweight="bold")
    _minor(axes["3b"], curves, ("kl-z-df", "l2+"), solid, dashed, labels)
    _energies(axes["3i"], curves, ("kl-z-df", "l2+"), labels)
    start = shown["start"]
    _plane(axes["3c1"], start.data_angles, DATA, "data")
    _plane(axes["3c2"], start.samples_angles, COLOURS["start"], "pre-trained")
    for panel, name in (("3c3", "kl-z-df"), ("3c4", "l2+"), ("4c", "kl-x")):
        _plane(axes[panel], shown[name].samples_angles, COLOURS[name], labels[name])
    for panel, name in (("3d", "kl-z-df"), ("3e", "l2+"), ("4b", "kl-x"), ("5b", "l2+attached")):
        _against_phi(axes[panel], shown[name], "energy", COLOURS[name], labels[name])
    for panel, name in (("3f", "kl-z-df"), ("3g", "l2+"), ("4d", "kl-x"), ("5c", "l2+attached")):
        _against_phi(axes[panel], shown[name], "surprise", COLOURS[name], labels[name])
    _correlations(axes["3h"], shown, labels)
    _minor(axes["4a"], curves, ("kl-x",), solid, dashed, labels)
    _energies(axes["5a"], curves, ("l2+attached", "log-variance"), labels)
    figure.suptitle(
        f"Felardos et al. (2022), figures 3, 4 and 5, run again; clouds: seed {shown_seed}, data in orange",
        fontsize="medium",
    )
    return figure


def _minor(
    ax: Axes,
    curves: Mapping[int, Mapping[str, Curve]],
    names: tuple[str, ...],
    solid: Share,
    dashed: Share,
    labels: Mapping[str, str],
) -> None:
    ax.axhline(solid.percent, color=DATA, linewidth=2.0, label=f"true, {solid.percent:.2f} %")
    ax.axhline(dashed.percent, color=DATA, linewidth=2.0, linestyle="--", label=f"h minimised, {dashed.percent:.2f} %")
    for name, some, label in _each(curves, names, labels):
        ax.plot(some.steps, some.values["minor"], color=COLOURS[name], linewidth=0.9, label=label)
    ax.set_ylim(bottom=0)
    ax.margins(y=0.3)
    ax.set_xlabel("iterations")
    ax.set_ylabel("minor mode / %")
    ax.legend(fontsize="x-small", frameon=False)


def _energies(
    ax: Axes, curves: Mapping[int, Mapping[str, Curve]], names: tuple[str, ...], labels: Mapping[str, str]
) -> None:
    for name, some, label in _each(curves, names, labels):
        ax.plot(some.steps, some.values["energy"], color=COLOURS[name], linewidth=0.9, label=label)
        ax.plot(some.steps, some.values["energy_90"], ":", color=COLOURS[name], linewidth=0.9)
    ax.set_xlabel("iterations")
    ax.set_ylabel("U_B / kT, median and 90 %")
    ax.legend(fontsize="x-small", frameon=False)


def _each(
    curves: Mapping[int, Mapping[str, Curve]], names: tuple[str, ...], labels: Mapping[str, str]
) -> list[tuple[str, Curve, str | None]]:
    """Curves of all seeds; the first of each name with its label."""
    first = next(iter(curves))
    return [(name, curves[seed][name], labels[name] if seed == first else None) for name in names for seed in curves]


def _plane(ax: Axes, angles: Array, colour: str, label: str) -> None:
    ax.plot(*angles, ".", color=colour, markersize=1.5)
    ax.set_xlim(-180, 180)
    ax.set_ylim(-180, 180)
    ax.set_title(label, fontsize="small")
    ax.set_xlabel("phi / degrees")
    ax.set_ylabel("psi / degrees")


def _against_phi(ax: Axes, row: Shown, what: str, colour: str, label: str) -> None:
    data, samples = getattr(row.data, what), getattr(row.samples, what)
    ax.plot(row.samples_angles[0], samples, ".", color=colour, markersize=1.5)
    ax.plot(row.data_angles[0], data, ".", color=DATA, markersize=1.5)
    low = float(min(np.nanmin(data), np.nanmin(samples)))
    high = low + LARGEST if what == "energy" else float(np.nanquantile(np.concatenate([data, samples]), 0.995))
    ax.set_ylim(low - 1, high + 1)
    above = int(np.sum(~(samples <= high + 1)))
    if above:
        ax.annotate(f"{above} of {len(samples):,} above", (0.03, 0.93), xycoords="axes fraction", fontsize="x-small")
    ax.set_xlim(-180, 180)
    ax.set_title(label, fontsize="small")
    ax.set_xlabel("phi / degrees")
    ax.set_ylabel("U_B / kT" if what == "energy" else "U_G")


def _correlations(ax: Axes, shown: Mapping[str, Shown], labels: Mapping[str, str]) -> None:
    low = float(np.nanmin(shown["start"].data.energy))
    for name in ("kl-z-df", "l2+"):
        cloud = shown[name].samples
        ax.plot(cloud.surprise, cloud.energy, ".", color=COLOURS[name], markersize=1.5, label=labels[name])
    ax.set_ylim(low - 1, low + LARGEST)
    ax.set_xlabel("U_G")
    ax.set_ylabel("U_B / kT")
    ax.legend(fontsize="x-small", frameon=False)
