"""Pictures of free-energy profiles with their error bands, along one or two variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from boltzgen.plotting.style import REFERENCE, REWEIGHTED, axes_or_new, legend

if TYPE_CHECKING:
    from boltzgen.free_energy.profiles import Profile

__all__ = ["profile"]

_COLOURS = colormaps["viridis"].with_extremes(over="0.9")
MOST_BAND_KT = 0.5  # half-width beyond which a cell of a map is hatched


def profile(
    estimate: Profile,
    reference: Profile | None = None,
    ax: Axes | None = None,
    *,
    max_kT: float = 15.0,
    show: str = "free energy",
    colour_bar: bool = True,
) -> Axes:
    """A profile with its 95 % band; the reference as a line with a band of its own, or as contours of a map.

    Parameters
    ----------
    estimate : Profile
        From `boltzgen.free_energy.profile`.
    reference : Profile, optional
        Over the same variables, on any grid.
    ax : Axes, optional
    max_kT : float
        Top of the scale. Cells of a map beyond it are grey, those never visited white.
    show : {"free energy", "half-width"}
        What a map shows; hatched are cells whose 95 % half-width exceeds 0.5 kT.
    colour_bar : bool
        For maps.

    Raises
    ------
    ValueError
        If the reference is over other variables.
    """
    if reference is not None and len(reference.edges) != len(estimate.edges):
        raise ValueError(f"the reference has {len(reference.edges)} variable(s), the profile {len(estimate.edges)}")
    if len(estimate.edges) == 2:
        return _map(estimate, reference, ax, max_kT, show, colour_bar)
    ax = axes_or_new(ax)
    _band(ax, estimate, REWEIGHTED, "this ensemble", 0.25)
    if reference is not None:
        _band(ax, reference, REFERENCE, "reference", 0.12)
    ax.set_xlabel(_label(estimate, 0))
    ax.set_ylabel("free energy / kT")
    ax.set_xlim(estimate.edges[0][0], estimate.edges[0][-1])
    highest = np.nanmax(np.where(np.isfinite(estimate.high), estimate.high, estimate.free_energy))
    lowest = min(0.0, float(np.nanmin(estimate.low[np.isfinite(estimate.low) & (estimate.free_energy < 1)])))
    ax.set_ylim(1.05 * lowest - 0.2, min(1.05 * highest + 0.5, max_kT))
    legend(ax)
    return ax


def _band(ax: Axes, estimate: Profile, style: dict[str, Any], label: str, alpha: float) -> None:
    x = estimate.centres[0]
    ax.plot(x, estimate.free_energy, label=label, **style)
    # An infinite band would not be drawn at all; beyond the axis it is.
    low, high = (np.clip(values, -1e3, 1e3) for values in (estimate.low, estimate.high))
    ax.fill_between(x, low, high, color=style["color"], alpha=alpha, linewidth=0, label=f"95 %, {label}")


def _map(
    estimate: Profile, reference: Profile | None, ax: Axes | None, max_kT: float, show: str, colour_bar: bool
) -> Axes:
    if show not in ("free energy", "half-width"):
        raise ValueError(f"show must be 'free energy' or 'half-width', not {show!r}")
    ax = axes_or_new(ax, (4.8, 3.9))
    values = estimate.free_energy if show == "free energy" else np.minimum(estimate.half_width, 1e3)
    shown = np.ma.masked_invalid(np.where(np.isnan(estimate.free_energy), np.nan, values)).T
    top = max_kT if show == "free energy" else 2 * MOST_BAND_KT
    mesh = ax.pcolormesh(*estimate.edges, shown, cmap=_COLOURS, vmin=0.0, vmax=top, rasterized=True)
    uncertain = ~(estimate.half_width <= MOST_BAND_KT) & ~np.isnan(estimate.free_energy)
    if show == "free energy" and uncertain.any():
        ax.contourf(*estimate.centres, uncertain.T.astype(float), levels=[0.5, 1.5], colors="none", hatches=["/////"])
    if reference is not None:
        levels = np.arange(2.0, max_kT + 1e-9, 2.0)
        filled = np.where(np.isnan(reference.free_energy), max_kT + 2.0, reference.free_energy)
        ax.contour(*reference.centres, filled.T, levels=levels, colors="black", linewidths=0.8)
        ax.plot([], [], color="black", linewidth=0.8, label="reference, every 2 kT")
        ax.legend(loc="upper right", fontsize="x-small", frameon=True, framealpha=0.85)
    ax.set_xlabel(_label(estimate, 0))
    ax.set_ylabel(_label(estimate, 1))
    ax.spines[["top", "right"]].set_visible(True)
    if colour_bar:
        bar = ax.figure.colorbar(mesh, ax=ax, label=f"{show} / kT", extend="max", fraction=0.046, pad=0.03)
        bar.outline.set_linewidth(0.6)
    return ax


def _label(estimate: Profile, axis: int) -> str:
    unit = estimate.units[axis]
    return f"{estimate.names[axis]} / {unit}" if unit else estimate.names[axis]
