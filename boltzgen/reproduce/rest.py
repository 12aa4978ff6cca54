"""Where a training with L2+ comes to rest: what a mode has of the samples, and of what the loss raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzgen.generator import BoltzmannGenerator
from boltzgen.reproduce.claims import markdown_table
from boltzgen.reproduce.frames import Share
from boltzgen.training import soft_cap

__all__ = ["RESTS", "WHERE_IT_RESTS", "Rest", "rest", "rest_table"]

SEED = 20
WHERE_IT_RESTS = "Where L2+ rests: the minor mode in the end"
RESTS = (
    "A density that is free at every point would be moved by L2+ from a mode with more of the samples than of "
    "(r - K)_+ to one with less, and rest where the two are equal, which holds for p = q, but not only there."
)
BAD = 10.0  # of r below its median


@dataclass(frozen=True)
class Rest:
    """What a mode has of a generator; standard errors from batches.

    Of a density that is free at every point, L2+ moves mass from a mode that has more of the samples than of (r - K)_+
    to one that has less, and rests where the shares are equal: for p = q, but not only there. A flow can rest elsewhere
    too, where its parameters allow no such change; that training clips gradients at a norm is not in it either.

    Attributes
    ----------
    samples, raised, reweighted : Share
        Of the samples as generated, of (r - K)_+ with the batch means K as in training, and of p / q.
    bad, bad_elsewhere : float
        Percent of the samples in the mode, and of all others, whose r is more than 10 below the median of all.
    spread, spread_elsewhere : float
        Standard deviation of r, capped as in training, of the samples in the mode and of all others: where it is wider,
        more lies above K, which L2+ raises, and what lies below does not count.
    """

    samples: Share
    raised: Share
    reweighted: Share
    bad: float
    bad_elsewhere: float
    spread: float
    spread_elsewhere: float

    def __str__(self) -> str:
        return f"{self.samples} of the samples, {self.raised} of (r - K)_+, {self.reweighted} with weights"


def rest(generator: BoltzmannGenerator, mode: Callable[[Tensor], Tensor], n: int, batch_size: int) -> Rest:
    """What a mode has, from n samples.

    Parameters
    ----------
    generator : BoltzmannGenerator
    mode : callable
        From positions (B, N, 3) to (B,) bool.
    n, batch_size : int
        Batches as in training, whose means K are.
    """
    rng = torch.Generator(device=generator.device).manual_seed(SEED)
    ratios, insides, raised, trained = [], [], [], []
    for _ in range(max(2, n // batch_size)):
        with torch.no_grad():
            x, log_q = generator.flow.sample_and_log_prob(batch_size, rng)
            reduced = generator.reduced_energy(x).double()
        insides.append(mode(x))
        log_ratio = -reduced - log_q
        valid = torch.isfinite(log_ratio)  # the others have weight zero, and no part in the loss
        capped = -soft_cap(reduced[valid]) - log_q[valid]
        excess = torch.zeros_like(log_ratio)
        trained.append(torch.full_like(log_ratio, torch.nan))
        trained[-1][valid] = capped
        excess[valid] = (capped - capped.mean()).clamp(min=0)
        raised.append(excess)
        ratios.append(log_ratio.masked_fill(~valid, -torch.inf))
    inside, ratio = torch.stack(insides).cpu(), torch.stack(ratios).cpu()
    finite = torch.stack(trained).cpu()
    spread = lambda rows: _deviation(finite[rows & ~finite.isnan()])
    bad = ratio < ratio.median() - BAD
    share = lambda w: _share(w * inside, w)
    return Rest(
        samples=share(torch.ones_like(ratio)),
        raised=share(torch.stack(raised).cpu()),
        reweighted=share((ratio - ratio.max()).exp()),
        bad=100 * float(bad[inside].double().mean()),
        bad_elsewhere=100 * float(bad[~inside].double().mean()),
        spread=spread(inside),
        spread_elsewhere=spread(~inside),
    )


def rest_table(rows: Iterable[tuple[str, int, float, Rest]]) -> str:
    """A row for each generator, by its name, seed and true share in percent."""
    cells = []
    for name, seed, true, one in rows:
        shares = (str(one.samples), str(one.raised), str(one.reweighted), f"{true:.2f} %")
        bad = f"{one.bad:.1f}, {one.bad_elsewhere:.1f} %"
        cells.append((name, str(seed), *shares, f"{one.spread:.2f}, {one.spread_elsewhere:.2f}", bad))
    heads = ("of the samples", "of (r - K)_+", "with weights p / q", "true")
    both = "in the mode and elsewhere"
    return markdown_table(("generator", "seed", *heads, f"spread of r, {both}", f"bad samples, {both}"), cells)


def _deviation(values: Tensor) -> float:
    """Standard deviation; NaN of nothing."""
    return float(values.std(correction=0)) if len(values) else math.nan


def _share(part: Tensor, whole: Tensor) -> Share:
    """Of sums (batches, n), with the error of a ratio."""
    a, b = part.sum(1), whole.sum(1)
    value, n = a.sum() / b.sum(), len(a)
    error = ((a - value * b).square().sum() * n / (n - 1)).sqrt() / b.sum()
    return Share(100 * float(value), 100 * float(error))
