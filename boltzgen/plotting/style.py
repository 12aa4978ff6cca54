"""What all pictures share: colours, axes, and the counts of what an axis cannot show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = [
    "BASIN_COLOURS",
    "BASIN_MARKERS",
    "RAW",
    "REFERENCE",
    "REWEIGHTED",
    "Array",
    "axes_or_new",
    "compared",
    "count_note",
    "count_of",
    "count_suffix",
    "legend",
    "minus_log",
    "number",
    "percent_of",
    "plain",
    "probabilities",
    "stair_style",
]

Array = NDArray[np.floating[Any]]

RAW: dict[str, Any] = {"color": "#E69F00", "linestyle": "-.", "linewidth": 1.3}
REWEIGHTED: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.8}
REFERENCE: dict[str, Any] = {"color": "#000000", "linestyle": (0, (4, 2)), "linewidth": 1.3}
BASIN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BASIN_MARKERS = ("o", "s", "^", "D", "v", "P")


def probabilities(ensemble: Ensemble, weighted: bool) -> Array:
    """(n,) shares that sum to one: importance weights, or 1/n each. ValueError if every weight is zero."""
    if ensemble.n == 0:
        raise ValueError("there are no samples to draw")
    return ensemble.unbiased().weights if weighted else np.full(ensemble.n, 1.0 / ensemble.n)


def compared(ensemble: Ensemble, reference: Ensemble | None) -> list[tuple[Ensemble, bool, str, dict[str, Any]]]:
    curves = [(ensemble, False, "as generated", RAW), (ensemble, True, "generated, reweighted", REWEIGHTED)]
    return curves if reference is None else curves + [(reference, True, "reference", REFERENCE)]


def minus_log(probability: Array) -> Array:
    with np.errstate(divide="ignore"):
        return -np.log(probability)


def number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def count_of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""


def percent_of(share: float, what: str) -> str:
    # Rounding noise of a sum over all weights is not a sample.
    return f"{100.0 * share:.2g} % {what}" if share > 1e-12 else ""


def count_note(ensemble: Ensemble, weighted: bool) -> str:
    """What a picture over torsions cannot show: samples without weight, and those without finite positions."""
    lost = count_of(int((~np.isfinite(ensemble.positions).all(axis=(1, 2))).sum()), "samples not finite")
    if not weighted:
        return lost
    n = len(ensemble.positions)
    zero = count_of(int((np.asarray(ensemble.weights) == 0).sum()), f"of {n:,} samples of weight zero")
    return ", ".join(filter(None, (zero, lost)))


def count_suffix(ensemble: Ensemble, weighted: bool) -> str:
    note = count_note(ensemble, weighted)
    return f"\n({note})" if note else ""


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (5.4, 3.4)) -> Axes:
    if ax is None:
        # "compressed": the constrained layout cuts labels off beside axes of fixed aspect.
        ax = plt.subplots(figsize=size, layout="compressed")[1]
    plain(ax)
    return ax


def plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")


def stair_style(style: dict[str, Any]) -> dict[str, Any]:
    return style | {"baseline": None}


def legend(ax: Axes, loc: str | None = None) -> None:
    """Legend at ``loc`` inside the axes; above them, where it can hide no curve, if absent."""
    place: dict[str, Any] = {"loc": loc}
    if loc is None:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.3}
    ax.legend(fontsize="x-small", frameon=False, **place)
