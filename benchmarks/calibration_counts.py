"""Counting how often the intervals of an estimator hold the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import beta as beta_distribution

from boltzgen import free_energy as fe
from boltzgen.ensemble import Ensemble

FEWEST_EXPECTED = 10  # samples in a cell of a profile


@dataclass
class Count:
    """Hits of one estimator: intervals that hold the truth."""

    name: str
    hits: float = 0.0
    n: int = 0
    errors: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, estimate: fe.Estimate, truth: float) -> None:
        self.hits += estimate.low <= truth <= estimate.high
        self.n += 1
        self.errors.append(estimate.value - truth)
        self.widths.append(estimate.half_width)

    def add_share(self, held: np.ndarray) -> None:
        """Of many intervals at once."""
        self.hits += float(np.mean(held))
        self.n += 1

    @property
    def share(self) -> float:
        return self.hits / self.n

    def row(self) -> str:
        low = beta_distribution.ppf(0.025, self.hits, self.n - self.hits + 1) if self.hits else 0.0
        high = beta_distribution.ppf(0.975, self.hits + 1, self.n - self.hits) if self.hits < self.n else 1.0
        spread = ""
        if self.errors:
            finite = np.isfinite(self.widths)
            ratio = np.median(np.array(self.widths)[finite]) / (1.96 * np.std(self.errors))
            spread = f"{np.mean(self.errors) / np.std(self.errors):8.2f} {ratio:8.2f}"
        return f"{self.name:<52} {self.n:5d}  {self.share:.3f}  ({low:.3f} to {high:.3f})  {spread}".rstrip()


Counts = dict[str, Count]


def tally(counts: Counts, name: str, estimate: fe.Estimate, truth: float) -> None:
    counts.setdefault(name, Count(name)).add(estimate, truth)


def count_profile(counts: Counts, name: str, profile: fe.Profile, truth: np.ndarray, n: int) -> None:
    volume = np.prod([edges[1] - edges[0] for edges in profile.edges])
    expected = np.exp(-truth) * volume * n >= FEWEST_EXPECTED
    low, high = profile.low + profile.offset, profile.high + profile.offset
    counts.setdefault(name, Count(name)).add_share(((low <= truth) & (truth <= high))[expected])


def blocks(n: int, size: int) -> Iterator[range]:
    """The numbers below n in blocks."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def pieces(ensemble: Ensemble, size: int) -> Iterator[Ensemble]:
    """An ensemble in pieces of equal size."""
    return (ensemble[start : start + size] for start in range(0, len(ensemble), size))
