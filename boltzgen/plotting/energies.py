"""Pictures of energies and importance weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from scipy.special import logsumexp

from boltzgen.plotting.style import (
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

__all__ = ["energy_correlation", "energy_histogram", "weights"]


def energy_histogram(
    ensemble: Ensemble, reference: Ensemble | None = None, ax: Axes | None = None, *, bins: int = 80
) -> Axes:
    """Distribution of the potential energy: as generated, reweighted, and of the reference.

    Densities are shares of *all* samples, those beyond the axis and of infinite energy included.

    Parameters
    ----------
    ensemble : Ensemble
    reference : Ensemble, optional
    ax : Axes, optional
    bins : int

    Raises
    ------
    ValueError
        If no sample has a positive weight and a finite energy, or there are no energies.
    """
    drawn = reference if reference is not None and reference.energies is not None else None
    low, high = _energy_range(ensemble, drawn)
    ax = axes_or_new(ax)
    for source, weighted, label, style in compared(ensemble, drawn):
        energies, probability = _energies(source), probabilities(source, weighted)
        inside = np.isfinite(energies) & (energies >= low) & (energies <= high)
        counts, edges = np.histogram(energies[inside], bins, (low, high), weights=probability[inside])
        beyond = [
            percent_of(probability[np.isfinite(energies) & ~inside].sum(), "beyond the axis"),
            count_of(int((probability[~np.isfinite(energies)] > 0).sum()), "infinite"),
        ]
        suffix = ", ".join(filter(None, beyond))
        ax.stairs(
            counts / (edges[1] - edges[0]),
            edges,
            label=f"{label} ({suffix})" if suffix else label,
            **stair_style(style),
        )
    if drawn is not reference:
        ax.plot([], [], label="reference (without energies)", **REFERENCE)
    ax.set_xlabel("potential energy / (kJ/mol)")
    ax.set_ylabel("probability density / (kJ/mol)$^{-1}$")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0.0)
    legend(ax)
    return ax


def energy_correlation(ensemble: Ensemble, ax: Axes | None = None) -> Axes:
    """Reduced energy of each sample against minus its log-density under the generator.

    A perfect generator lies on the line of slope one, offset by -log Z; the distance above it is what a sample has
    lost in weight.

    Parameters
    ----------
    ensemble : Ensemble
        With log_q, which the samples of a reference simulation may lack.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If energies or log_q are missing, or no sample has both finite.
    """
    if ensemble.log_q is None:
        raise ValueError("these samples have no log-density under a generator")
    reduced, surprise = _energies(ensemble) / ensemble.kT, -np.asarray(ensemble.log_q, dtype=float)
    finite = np.isfinite(reduced) & np.isfinite(surprise)
    if not finite.any():
        raise ValueError("no sample has both a finite energy and a finite log-density under the generator")
    log_z = logsumexp(surprise[finite] - reduced[finite]) - np.log(len(reduced))
    ax = axes_or_new(ax, (4.6, 3.8))
    # A few overlapping atoms reach 1e6 kT and would squeeze all others into a line.
    top = 2.0 * np.quantile(reduced[finite], 0.98) - np.quantile(reduced[finite], 0.02) + 1.0
    shown = finite & (reduced <= top)
    cells = ax.hexbin(
        surprise[shown], reduced[shown], gridsize=70, norm=LogNorm(), mincnt=1, cmap="viridis", linewidths=0
    )
    ax.figure.colorbar(cells, ax=ax, label="samples per cell", fraction=0.046, pad=0.03)
    ends = np.array([surprise[shown].min(), surprise[shown].max()])
    missing = [count_of(int((finite & ~shown).sum()), "above the axis"), count_of(int((~finite).sum()), "not finite")]
    label = "slope one, offset −log Z" + "".join(f"\n{text}" for text in missing if text)
    ax.plot(ends, ends - log_z, color="#D55E00", linestyle=(0, (4, 2)), linewidth=1.4, label=label)
    ax.set_xlabel("−log q of the generator")
    ax.set_ylabel("energy / kT")
    legend(ax, loc="upper left")
    return ax


def weights(ensemble: Ensemble, ax: Axes | None = None) -> Axes:
    """Importance weights from the largest down, in units of their mean, with Pareto k and the effective sample size.

    A flat line at one is a perfect generator. A steep rise to the left is a tail that few samples carry: with a
    Pareto k above 0.7 their number says little about the error (Vehtari et al., 2024).

    Parameters
    ----------
    ensemble : Ensemble
    ax : Axes, optional

    Raises
    ------
    ValueError
        If no sample has a positive weight.
    """
    probability = probabilities(ensemble, True)
    descending = np.sort(probability[probability > 0])[::-1] * len(probability)
    ax = axes_or_new(ax)
    zero = len(probability) - len(descending)
    label = f"{len(probability):,} samples" + (f"\n{count_of(zero, 'of weight zero')}" if zero else "")
    ax.loglog(np.arange(1, len(descending) + 1), descending, label=label, **REWEIGHTED)
    ax.axhline(1.0, color="#000000", linewidth=0.8, linestyle=":", label="perfect generator")
    ax.set_ylim(bottom=max(descending[-1] * 0.5, 1e-4 * min(1.0, descending[0])), top=max(3.0, descending[0] * 2.0))
    ax.set_xlabel("rank of the sample by weight")
    ax.set_ylabel("weight / mean weight")
    text = (
        f"Pareto k = {ensemble.pareto_k:.2f}\n"
        f"ESS = {ensemble.ess_fraction:.3f} n\n"
        f"largest share = {probability.max():.1e}"
    )
    ax.annotate(text, (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize="small")
    legend(ax, loc="lower left")
    return ax


def _energies(ensemble: Ensemble) -> Array:
    if ensemble.energies is None:
        raise ValueError("these samples have no energies")
    return np.asarray(ensemble.energies, dtype=float)


def _energy_range(ensemble: Ensemble, reference: Ensemble | None) -> tuple[float, float]:
    """All but 1e-3 of either end of the weighted samples, widened by at most its own width for the raw ones."""
    bounds = []
    for source in (ensemble, reference):
        if source is not None:
            energies, probability = _energies(source), probabilities(source, True)
            keep = np.isfinite(energies) & (probability > 0)
            if not keep.any():
                raise ValueError("no sample with a positive weight has a finite energy")
            order = np.argsort(energies[keep])
            cumulative = np.cumsum(probability[keep][order])
            at = np.searchsorted(cumulative, np.array([1e-3, 1.0 - 1e-3]) * cumulative[-1])
            bounds.append(energies[keep][order][at])
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    width = max(high - low, 1e-6 * max(1.0, abs(low)))
    raw = _energies(ensemble)
    raw_low, raw_high = np.quantile(raw[np.isfinite(raw)], (0.005, 0.98))
    return max(min(low, raw_low), low - width) - 0.05 * width, min(max(high, raw_high), high + width) + 0.05 * width
