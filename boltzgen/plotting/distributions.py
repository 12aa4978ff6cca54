"""Pictures of what a paper's figures show beside the torsions: any variable, centres of mass, convergence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from openmm import unit as openmm_unit

from boltzgen.free_energy.basins import basin_free_energies
from boltzgen.free_energy.observables import Observable, observe
from boltzgen.plotting.style import (
    RAW,
    REFERENCE,
    REWEIGHTED,
    Array,
    axes_or_new,
    compared,
    count_of,
    legend,
    percent_of,
    probabilities,
    stair_style,
)

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["centres_of_mass", "convergence", "marginal"]

SHOWN = 0.999  # of the weight, in the middle of an axis that nothing else bounds
FEWEST = 100  # samples, for a first estimate


def marginal(
    ensemble: Ensemble,
    variable: Observable,
    reference: Ensemble | None = None,
    ax: Axes | None = None,
    *,
    bins: int = 80,
) -> Axes:
    """Distribution of a bond, angle, torsion or any other variable: as generated, reweighted, and of the reference.

    Densities are shares of *all* samples; what lies beyond the axis is said in the legend.

    Parameters
    ----------
    ensemble : Ensemble
    variable : str or callable
        As in `boltzgen.collective_variables.parse_variable`: "phi", "distance(4, 6)", "angle(4, 6, 8)", "rg"; or a
        function of positions (n, N, 3) in nm to (n,).
    reference : Ensemble, optional
    ax : Axes, optional
    bins : int

    Raises
    ------
    SelectionError
        If the variable does not parse.
    ValueError
        If no sample has a positive weight and a finite value.
    """
    curves = [
        (observe(source, variable), probabilities(source, weighted), label, style)
        for source, weighted, label, style in compared(ensemble, reference)
    ]
    first = curves[0][0]
    low, high = (-180.0, 180.0) if first.is_periodic else _range([(seen.values, p) for seen, p, *_ in curves])
    ax = axes_or_new(ax)
    for seen, probability, label, style in curves:
        values = np.asarray(seen.values, dtype=float)
        inside = np.isfinite(values) & (values >= low) & (values <= high)
        counts, edges = np.histogram(values[inside], bins, (low, high), weights=probability[inside])
        beyond = [
            percent_of(probability[np.isfinite(values) & ~inside].sum(), "beyond the axis"),
            count_of(int((~np.isfinite(values)).sum()), "not finite"),
        ]
        note = ", ".join(filter(None, beyond))
        name = f"{label} ({note})" if note else label
        ax.stairs(counts / (edges[1] - edges[0]), edges, label=name, **stair_style(style))
    symbol = f" / {first.unit}" if first.unit else ""
    ax.set_xlabel(f"{first.name}{symbol}")
    ax.set_ylabel(f"probability density / {first.unit}$^{{-1}}$" if first.unit else "probability density")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0.0)
    legend(ax)
    return ax


def centres_of_mass(ensemble: Ensemble, reference: Ensemble | None = None, ax: Axes | None = None) -> Axes:
    """Distance of the centre of mass from the origin, as generated, reweighted, and of the reference.

    What figure 2 of Felardos et al. (2022) shows of generators in Cartesian coordinates, whose energy does not know
    where the molecule is; one in internal coordinates keeps the middle of its tree of atoms at the origin.

    Parameters
    ----------
    ensemble : Ensemble
        With a molecule.
    reference : Ensemble, optional
    ax : Axes, optional

    Raises
    ------
    StructureError
        If there is no molecule.
    """
    system = ensemble.require_molecule().system
    masses = np.array(
        [system.getParticleMass(i).value_in_unit(openmm_unit.amu) for i in range(system.getNumParticles())]
    )

    def distance(positions: Array) -> Array:
        centre = np.einsum("nai,a->ni", np.asarray(positions), masses / masses.sum())
        return np.asarray(np.linalg.norm(centre, axis=1))

    ax = marginal(ensemble, distance, reference, ax)
    ax.set_xlabel("distance of the centre of mass from the origin / nm")
    ax.set_ylabel("probability density / nm$^{-1}$")
    return ax


def convergence(
    ensemble: Ensemble,
    basin: str,
    ax: Axes | None = None,
    *,
    reference: tuple[float, float] | None = None,
    points: int = 12,
) -> Axes:
    """Free energy of a basin from the first n samples, with its 95 % interval, against n.

    Parameters
    ----------
    ensemble : Ensemble
        Of independent samples, in the order in which they were drawn.
    basin : str
        Expression, such as "0 < phi < 150".
    ax : Axes, optional
    reference : (low, high), optional
        An interval to compare with, kT.
    points : int
        Numbers of samples, in equal ratios.

    Raises
    ------
    SelectionError
        If the expression does not parse.
    ValueError
        If the samples are not independent, or fewer than a hundred.
    """
    if ensemble.kind != "independent":
        raise ValueError(f"the first samples of a {ensemble.kind} ensemble are no smaller sample of the same kind")
    if len(ensemble) < FEWEST:
        raise ValueError(f"{len(ensemble)} samples are too few: at least {FEWEST}")
    numbers = np.unique(np.geomspace(FEWEST, len(ensemble), points).astype(int))
    found = [basin_free_energies(ensemble[:n], {"basin": basin})["basin"] for n in numbers]
    values, low, high = (np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high"))
    ax = axes_or_new(ax)
    known = np.isfinite(values)
    ax.plot(numbers[known], values[known], marker="o", markersize=3, label="first n samples, reweighted", **REWEIGHTED)
    bounded = known & np.isfinite(low) & np.isfinite(high)
    ax.fill_between(numbers[bounded], low[bounded], high[bounded], color=REWEIGHTED["color"], alpha=0.2, linewidth=0)
    if not known.all():
        none = count_of(int((~known).sum()), "of the smaller numbers without a sample in the basin, or outside it")
        ax.plot([], [], label=none, **RAW)
    if reference is not None:
        for edge in reference:
            ax.axhline(edge, **REFERENCE)
        ax.plot([], [], label="reference", **REFERENCE)
    ax.set_xscale("log")
    ax.set_xlabel("samples")
    ax.set_ylabel(f"ΔF({basin}) / kT")
    legend(ax)
    return ax


def _range(curves: list[tuple[Array, Array]]) -> tuple[float, float]:
    """An axis that holds the middle of the reweighted and reference curves; of all, if these have no spread."""
    for chosen in (curves[1:], curves):
        low, high = math.inf, -math.inf
        for values, probability in chosen:
            seen = np.isfinite(values) & (probability > 0)
            if not seen.any():
                continue
            order = np.argsort(values[seen])
            share = np.cumsum(probability[seen][order]) / probability[seen].sum()
            ends = np.searchsorted(share, [0.5 * (1 - SHOWN), 0.5 * (1 + SHOWN)])
            inner = values[seen][order][np.minimum(ends, seen.sum() - 1)]
            low, high = min(low, float(inner[0])), max(high, float(inner[1]))
        if high > low:
            margin = 0.05 * (high - low)
            return low - margin, high + margin
    if low == high:
        return low - 0.5, high + 0.5
    raise ValueError("no sample has a positive weight and a finite value")
