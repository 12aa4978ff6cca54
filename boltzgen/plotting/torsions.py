"""Pictures over torsions: Ramachandran maps, marginals, free-energy profiles."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from boltzgen.collective_variables import parse_variable
from boltzgen.ensemble import Ensemble
from boltzgen.errors import SelectionError
from boltzgen.plotting.style import (
    REFERENCE,
    REWEIGHTED,
    Array,
    axes_or_new,
    compared,
    count_note,
    count_suffix,
    legend,
    minus_log,
    probabilities,
    stair_style,
)

__all__ = [
    "free_energy_map",
    "free_energy_profile",
    "ramachandran",
    "ramachandran_histogram",
    "torsion_angles",
    "torsion_marginal",
]

HIGHEST_KT = 15.0  # top of a profile's axis; one clash sampled by chance would flatten everything else
_COLOURS = colormaps["viridis"].with_extremes(over="0.9")


def torsion_angles(ensemble: Ensemble, name: str) -> Array:
    """One torsion in every sample.

    Parameters
    ----------
    ensemble : Ensemble
        With a molecule.
    name : str
        As in a basin: ``"phi"``, ``"psi[2]"``, ``"torsion(0, 3, 6, 9)"``.

    Returns
    -------
    (n,) array
        Degrees in (-180, 180], IUPAC sign; NaN where the positions are not finite.

    Raises
    ------
    SelectionError
        If there is no molecule, or it has no torsion of that name.
    """
    if ensemble.molecule is None:
        raise SelectionError(f"no torsion '{name}': the ensemble has no molecule")
    variable = parse_variable(name, ensemble.molecule)
    if not variable.is_periodic:
        raise SelectionError(f"'{name}' is a distance: a torsion is needed here")
    return np.asarray(variable(ensemble.positions))


def ramachandran_histogram(
    ensemble: Ensemble, phi: str = "phi", psi: str = "psi", *, weighted: bool = True, bins: int = 72
) -> Array:
    """Probability of each cell of a periodic grid over two torsions.

    Parameters
    ----------
    ensemble : Ensemble
    phi, psi : str
        Names of the torsions.
    weighted : bool
        Importance weights if true; every sample alike, as generated, if false.
    bins : int
        Cells along each axis, from -180 to 180 degrees.

    Returns
    -------
    (bins, bins) array
        First axis phi, second psi. Sums to one, less the share of samples whose angles are not finite.

    Raises
    ------
    SelectionError
        If a torsion is unknown.
    ValueError
        If no sample has a positive weight.
    """
    x, y = torsion_angles(ensemble, phi), torsion_angles(ensemble, psi)
    probability = probabilities(ensemble, weighted)
    keep = np.isfinite(x) & np.isfinite(y)
    edges = np.linspace(-180.0, 180.0, bins + 1)
    return np.histogram2d(x[keep], y[keep], bins=(edges, edges), weights=probability[keep])[0]


def ramachandran(
    ensemble: Ensemble,
    phi: str = "phi",
    psi: str = "psi",
    reference: Ensemble | ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    weighted: bool = True,
    bins: int = 72,
    max_kT: float = 10.0,
    colour_bar: bool = True,
) -> Axes:
    """Free-energy map over two torsions, -ln P in kT above its lowest cell; the reference as contours.

    Parameters
    ----------
    ensemble : Ensemble
    phi, psi : str
        Names of the torsions along x and y.
    reference : Ensemble or (bins, bins) array, optional
        Drawn as contour lines of its own map, 2 kT apart, smoothed by one cell. An array is a histogram, first axis
        phi.
    ax : Axes, optional
    weighted : bool
        Importance weights if true; the samples as generated if false.
    bins : int
        Cells along each axis.
    max_kT : float
        Upper end of the colour scale.
    colour_bar : bool

    Raises
    ------
    SelectionError
        If a torsion is unknown.
    ValueError
        If no sample has a positive weight, or a reference histogram does not have the shape of the map.
    """
    histogram = ramachandran_histogram(ensemble, phi, psi, weighted=weighted, bins=bins)
    ax = free_energy_map(histogram, ax, max_kT=max_kT, colour_bar=colour_bar)
    ax.set_xlabel(f"{phi} / degrees")
    ax.set_ylabel(f"{psi} / degrees")
    if reference is not None:
        _reference_contours(ax, _reference_histogram(reference, phi, psi, bins), max_kT)
    note = count_note(ensemble, weighted)
    if note:
        ax.annotate(note, (0.0, 1.01), xycoords="axes fraction", fontsize="x-small", va="bottom")
    return ax


def free_energy_map(
    histogram: ArrayLike, ax: Axes | None = None, *, max_kT: float = 10.0, colour_bar: bool = True
) -> Axes:
    """Map of -ln P in kT from a histogram over two torsions; cells above the scale are grey, those never visited white.

    Parameters
    ----------
    histogram : (bins, bins) array
        Counts or probabilities over [-180, 180] degrees, first axis along x.
    ax : Axes, optional
    max_kT : float
        Upper end of the colour scale, above the lowest cell.
    colour_bar : bool

    Raises
    ------
    ValueError
        If the histogram is not square or holds no probability.
    """
    free_energy = _free_energy(_square(histogram))
    ax = axes_or_new(ax, (4.6, 3.8))
    edges = np.linspace(-180.0, 180.0, len(free_energy) + 1)
    mesh = ax.pcolormesh(
        edges, edges, np.ma.masked_invalid(free_energy.T), cmap=_COLOURS, vmin=0.0, vmax=max_kT, rasterized=True
    )
    _torsion_axis(ax, both=True)
    ax.set_aspect("equal")
    if colour_bar:
        bar = ax.figure.colorbar(mesh, ax=ax, label="free energy / kT", extend="max", fraction=0.046, pad=0.03)
        bar.outline.set_linewidth(0.6)
    return ax


def torsion_marginal(
    ensemble: Ensemble, name: str, reference: Ensemble | None = None, ax: Axes | None = None, *, bins: int = 72
) -> Axes:
    """Probability density of one torsion: as generated, reweighted, and of the reference.

    Parameters
    ----------
    ensemble : Ensemble
    name : str
        Name of the torsion.
    reference : Ensemble, optional
    ax : Axes, optional
    bins : int

    Raises
    ------
    SelectionError
        If the torsion is unknown.
    ValueError
        If no sample has a positive weight.
    """
    ax = axes_or_new(ax)
    edges = np.linspace(-180.0, 180.0, bins + 1)
    for source, weighted, label, style in compared(ensemble, reference):
        density = _torsion_histogram(source, name, weighted, bins) / (edges[1] - edges[0])
        ax.stairs(density, edges, label=label + count_suffix(source, weighted), **stair_style(style))
    _torsion_axis(ax)
    ax.set_xlabel(f"{name} / degrees")
    ax.set_ylabel("probability density / degree$^{-1}$")
    ax.set_ylim(bottom=0.0)
    legend(ax)
    return ax


def free_energy_profile(
    ensemble: Ensemble,
    name: str,
    reference: Ensemble | None = None,
    ax: Axes | None = None,
    *,
    bins: int = 72,
    replicates: int = 200,
    seed: int = 0,
) -> Axes:
    """Free energy along one torsion in kT with a 95 % bootstrap band; the reference as a line.

    The band resamples the generated samples, which are independent, with Poisson counts. Frames of a reference
    simulation are correlated, so no band is drawn for them: it would be too narrow.

    Parameters
    ----------
    ensemble : Ensemble
    name : str
        Name of the torsion.
    reference : Ensemble, optional
    ax : Axes, optional
    bins : int
    replicates : int
        Bootstrap replicates.
    seed : int
        Of the bootstrap.

    Raises
    ------
    SelectionError
        If the torsion is unknown.
    ValueError
        If no sample has a positive weight.
    """
    ax = axes_or_new(ax)
    angles, probability = torsion_angles(ensemble, name), probabilities(ensemble, True)
    low, high = _bootstrap_band(angles, probability, bins, replicates, seed)
    centres = (np.arange(bins) + 0.5) * 360.0 / bins - 180.0
    ax.fill_between(centres, low, high, color=REWEIGHTED["color"], alpha=0.25, linewidth=0, label="95 % (bootstrap)")
    for source, label, style in ((ensemble, "generated, reweighted", REWEIGHTED), (reference, "reference", REFERENCE)):
        if source is not None:
            profile = _free_energy(_torsion_histogram(source, name, True, bins))
            ax.plot(centres, profile, label=label + count_suffix(source, True), **style)
    _torsion_axis(ax)
    ax.set_xlabel(f"{name} / degrees")
    ax.set_ylabel("free energy / kT")
    ax.set_ylim(top=min(ax.get_ylim()[1], HIGHEST_KT))
    legend(ax)
    return ax


def _torsion_histogram(ensemble: Ensemble, name: str, weighted: bool, bins: int) -> Array:
    angles, probability = torsion_angles(ensemble, name), probabilities(ensemble, weighted)
    keep = np.isfinite(angles)
    return np.histogram(angles[keep], bins, (-180.0, 180.0), weights=probability[keep])[0]


def _bootstrap_band(angles: Array, probability: Array, bins: int, replicates: int, seed: int) -> tuple[Array, Array]:
    """Bounds of the profile on the scale whose zero is the lowest bin of all samples; NaN where a bin is empty."""
    keep = np.isfinite(angles) & (probability > 0)
    cell = np.minimum(((angles[keep] + 180.0) * bins / 360.0).astype(np.intp), bins - 1)
    share = probability[keep]
    lowest = -np.log(np.bincount(cell, share, bins).max())
    rng = np.random.default_rng(seed)
    profiles = np.empty((replicates, bins))
    for row in profiles:
        resampled = share * rng.poisson(size=len(share))
        total = resampled.sum()
        row[:] = minus_log(np.bincount(cell, resampled, bins) / total if total > 0 else np.zeros(bins)) - lowest
    # An empty bin of one replicate is an infinite free energy. Interpolating quantiles would make NaN of it.
    low, high = np.quantile(profiles, (0.025, 0.975), axis=0, method="nearest")
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(low), high, np.nan)


def _reference_histogram(reference: Ensemble | ArrayLike, phi: str, psi: str, bins: int) -> Array:
    if isinstance(reference, Ensemble):
        return ramachandran_histogram(reference, phi, psi, bins=bins)
    histogram = _square(reference)
    if len(histogram) != bins:
        raise ValueError(f"the reference histogram has {len(histogram)} cells along each axis, the map {bins}")
    return histogram


def _reference_contours(ax: Axes, histogram: Array, max_kT: float) -> None:
    # One cell of smoothing: contour lines round single counts would hide the map beneath.
    smooth = minus_log(gaussian_filter(np.pad(histogram / histogram.sum(), 1, mode="wrap"), 1.0, mode="wrap"))
    smooth = np.where(np.isfinite(smooth), smooth, smooth[np.isfinite(smooth)].max()) - smooth.min()
    step = 360.0 / len(histogram)
    centres = -180.0 + step * (np.arange(len(histogram) + 2) - 0.5)
    levels = np.arange(2.0, max_kT + 1e-9, 2.0)
    ax.contour(centres, centres, smooth.T, levels=levels, colors="black", linewidths=0.8)
    ax.plot([], [], color="black", linewidth=0.8, label="reference, every 2 kT")
    ax.set(xlim=(-180, 180), ylim=(-180, 180))
    ax.legend(loc="upper right", fontsize="x-small", frameon=True, framealpha=0.85)


def _free_energy(histogram: Array) -> Array:
    """-ln P in kT above the lowest cell; NaN in cells without probability."""
    if not histogram.sum() > 0:
        raise ValueError("the histogram holds no probability")
    free_energy = minus_log(histogram)
    return np.where(np.isfinite(free_energy), free_energy - free_energy.min(), np.nan)


def _square(histogram: ArrayLike) -> Array:
    array = np.asarray(histogram, dtype=float)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"a histogram over two torsions is square; this one has shape {array.shape}")
    return array


def _torsion_axis(ax: Axes, both: bool = False) -> None:
    ax.set_xlim(-180, 180)
    ax.xaxis.set_major_locator(MultipleLocator(90))
    if both:
        ax.set_ylim(-180, 180)
        ax.yaxis.set_major_locator(MultipleLocator(90))
        ax.spines[["top", "right"]].set_visible(True)
