"""Populations of clusters: labels of one's own, named regions, or clusters of torsions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.collective_variables import parse_basin, parse_variable
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import Estimate, judged, sample_figures
from boltzgen.free_energy.shares import shares

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["Populations", "TorsionClusters", "cluster_torsions", "populations"]

ITERATIONS = 100
STARTS = 8  # of the clustering; the best is kept
MOST_CLUSTERED = 20_000  # samples that centres are sought with; all samples are labelled


@dataclass(frozen=True)
class Populations(Mapping[str, Estimate]):
    """Population of each cluster with its 95 % interval; zero where no sample fell, with no claim that it is empty."""

    clusters: dict[str, Estimate]

    def __getitem__(self, name: str) -> Estimate:
        return self.clusters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.clusters)

    def __len__(self) -> int:
        return len(self.clusters)

    def __str__(self) -> str:
        first = next(iter(self.clusters.values()))
        rows = [f"P({name}) = {one.value:.4g} [{one.low:.4g}, {one.high:.4g}]" for name, one in self.clusters.items()]
        return "\n".join([*rows, f"(95 %; {first.method}; {first.n_samples:,} samples)\nverdict: {first.verdict}"])

    __repr__ = __str__


def populations(
    ensemble: Ensemble, clusters: np.ndarray | Sequence[Any] | Mapping[str, str] | Callable[[Ensemble], Any]
) -> Populations:
    """Population of each cluster.

    Parameters
    ----------
    ensemble : Ensemble
    clusters : (n,) labels, {name: expression}, or callable
        Labels of any kind, one for each sample, -1 for none; regions by expression (which may overlap); or what makes
        labels of an ensemble, such as the result of `cluster_torsions`. Intervals are for clusters whose borders are
        fixed: their shift from one ensemble to the next is not part of them.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    EstimateError
        If there is not one label for each sample, or a particle system has too few repeats.
    """
    ensemble = ensemble.unbiased()
    verdict, figures = ensemble.verdict(), sample_figures(ensemble)
    members: dict[str, np.ndarray] = {}
    if isinstance(clusters, Mapping):
        molecule = ensemble.require_molecule()
        for name, expression in clusters.items():
            members[name] = np.asarray(parse_basin(expression, molecule).contains(ensemble.positions))
    else:
        labels = np.asarray(clusters(ensemble) if callable(clusters) else clusters)
        if labels.shape != (len(ensemble),):
            raise EstimateError(
                f"labels have shape {labels.shape}; one for each of {len(ensemble):,} samples is needed"
            )
        members = {str(label): labels == label for label in np.unique(labels) if label != -1}
    if not members:
        raise EstimateError("there are no clusters: every sample is labelled -1")
    found = {}
    for name, inside in members.items():
        share = shares(np.where(inside, 0, -1), 1, ensemble.weights, ensemble.sampling)
        low, high = (float(bound[0]) for bound in share.bounds)
        value = float(share.probability[0])
        found[name] = Estimate(
            name=f"P({name})",
            value=value,
            low=low,
            high=high,
            method=share.method,
            n_samples=len(ensemble),
            diagnostics=figures | {"samples in it": float(inside.sum())},
            verdict=judged(verdict, share.about(0, value, low, high)),
        )
    return Populations(found)


@dataclass(frozen=True, eq=False)
class TorsionClusters:
    """Clusters of configurations by torsions: each belongs to the nearest centre.

    Attributes
    ----------
    names : tuple of str
        Of the torsions.
    centres : (k, n_torsions) array
        Degrees, the heaviest cluster first.
    """

    names: tuple[str, ...]
    centres: np.ndarray

    def __call__(self, ensemble: Ensemble) -> np.ndarray:
        """Label (n,) of each sample, from 0."""
        return _nearest(_on_circles(ensemble, self.names), _unit_vectors(self.centres))

    def __str__(self) -> str:
        rows = [
            f"{label}: " + ", ".join(f"{name} {value:.0f}" for name, value in zip(self.names, centre, strict=True))
            for label, centre in enumerate(self.centres)
        ]
        return "centres in degrees\n" + "\n".join(rows)

    __repr__ = __str__


def cluster_torsions(ensemble: Ensemble, torsions: Sequence[str], n_clusters: int, *, seed: int = 0) -> TorsionClusters:
    """Cluster configurations by torsions: weighted k-means of the points (cos, sin) of each torsion.

    Parameters
    ----------
    ensemble : Ensemble
    torsions : sequence of str
        As in a basin.
    n_clusters : int
    seed : int
        Of the starting centres.

    Raises
    ------
    EstimateError
        If a variable is not a torsion, or there are fewer distinct samples than clusters.

    References
    ----------
    Arthur and Vassilvitskii, SODA (2007): the choice of starting centres.
    """
    ensemble = ensemble.unbiased()
    rng = np.random.default_rng(seed)
    points, weights = _on_circles(ensemble, tuple(torsions)), ensemble.weights
    if len(points) > MOST_CLUSTERED:
        chosen = rng.choice(len(points), MOST_CLUSTERED, replace=False)
        points, weights = points[chosen], weights[chosen]
    points, weights = points[weights > 0], weights[weights > 0]
    if n_clusters < 1 or len(np.unique(points, axis=0)) < n_clusters:
        raise EstimateError(f"{len(points)} samples cannot make {n_clusters} clusters")
    best, least = points[:n_clusters], np.inf
    for _ in range(STARTS):
        centres, spread = _k_means(points, weights, n_clusters, rng)
        if spread < least:
            best, least = centres, spread
    label = _nearest(points, best)
    order = np.argsort(-np.bincount(label, weights, n_clusters))
    n = len(torsions)
    degrees = np.rad2deg(np.arctan2(best[order, n:], best[order, :n]))
    return TorsionClusters(tuple(torsions), degrees)


def _on_circles(ensemble: Ensemble, names: Sequence[str]) -> np.ndarray:
    """Points (n, 2 n_torsions): all cosines, then all sines."""
    molecule, columns = ensemble.require_molecule(), []
    for name in names:
        variable = parse_variable(name, molecule)
        if not variable.is_periodic:
            raise EstimateError(f"{name} is not a torsion; give labels of your own for other variables")
        columns.append(np.asarray(variable(ensemble.positions), dtype=np.float64))
    return _unit_vectors(np.stack(columns, axis=1))


def _unit_vectors(degrees: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Nearest centre (n,) on the circles: the largest sum of cosines of differences."""
    return np.asarray((points @ centres.T).argmax(axis=1))


def _k_means(
    points: np.ndarray, weights: np.ndarray, n_clusters: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Centres (k, 2 n_torsions) on the circles, and the weighted mean distance to them."""
    n = points.shape[1] // 2
    centres = points[rng.choice(len(points), 1, p=weights / weights.sum())]
    while len(centres) < n_clusters:
        distance = np.maximum(n - (points @ centres.T).max(axis=1), 0) * weights
        if distance.sum() == 0:
            distance = weights
        centres = np.concatenate([centres, points[rng.choice(len(points), 1, p=distance / distance.sum())]])
    label = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        previous, label = label, _nearest(points, centres)
        if np.array_equal(previous, label):
            break
        for cluster in np.unique(label):
            mean = (weights[label == cluster, None] * points[label == cluster]).sum(axis=0)
            length = np.hypot(mean[:n], mean[n:])
            centres[cluster] = np.where(np.tile(length, 2) > 0, mean / np.tile(np.maximum(length, 1e-300), 2), mean)
    spread = n - (points @ centres.T).max(axis=1)
    return centres, float(weights @ spread / weights.sum())
