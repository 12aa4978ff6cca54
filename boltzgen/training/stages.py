"""What a training consists of: stretches with one loss each."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BATCH_SIZE", "HOT_SHARE", "Stage", "annealing_stages", "refinement_stage"]

BATCH_SIZE = 768
HOT_SHARE = 0.1  # of the steps of an annealing


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one loss.

    Attributes
    ----------
    name : str
    loss : str
        A key of `boltzgen.losses.LOSSES`.
    n_steps : int
    heat_start, heat_end : float
        Temperature over the target temperature; it falls geometrically from one to the other.
    learning_rate_start, learning_rate_end : float
        Of Adam; cosine between the two.
    replay : float
        Share of each batch that is drawn from configurations evaluated before, in [0, 1); they cost no evaluation. The
        loss is then off-policy: see `boltzgen.training.replay`.
    ess_bound : float, optional
        Let the cooling set its own pace: the temperature falls as far as the ESS of the last batches, weighted at the
        new temperature, stays above this bound. See `boltzgen.training.cooling`.
    """

    name: str
    loss: str
    n_steps: int
    heat_start: float = 1.0
    heat_end: float = 1.0
    learning_rate_start: float = 1e-3
    learning_rate_end: float = 1e-3
    replay: float = 0.0
    ess_bound: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay={self.replay:g} must be a share of the batch below one")
        if self.ess_bound is not None and not 0 < self.ess_bound < 1:
            raise ValueError(f"ess_bound={self.ess_bound:g} must lie between zero and one")

    def heat(self, step: int) -> float:
        """Temperature over target temperature at a step, of a stage that keeps to a schedule."""
        return self.heat_start * (self.heat_end / self.heat_start) ** self._share(step)

    def learning_rate(self, step: int) -> float:
        """Of Adam, at a step."""
        mix = 0.5 * (1 + math.cos(math.pi * self._share(step)))
        return self.learning_rate_end + (self.learning_rate_start - self.learning_rate_end) * mix

    def n_fresh(self, batch_size: int) -> int:
        """Configurations of a batch that are drawn from the generator and evaluated."""
        n = batch_size - round(self.replay * batch_size)
        if n < 1:
            raise ValueError(f"replay={self.replay:g} leaves no fresh configuration in a batch of {batch_size}")
        return n

    def _share(self, step: int) -> float:
        return step / max(self.n_steps - 1, 1)


def annealing_stages(heat: float, n_steps: int, *, replay: float = 0.0, ess_bound: float | None = None) -> list[Stage]:
    """A tenth of the steps hot with reverse KL, the rest cooling with L2+."""
    hot = int(HOT_SHARE * n_steps)
    return [
        Stage("hot", "reverse-kl", hot, heat, heat),
        Stage("cooling", "l2+", n_steps - hot, heat, 1.0, replay=replay, ess_bound=ess_bound),
    ]


def refinement_stage(n_steps: int, loss: str = "l2+", *, replay: float = 0.0) -> Stage:
    """Refinement at the target temperature with a falling learning rate."""
    return Stage("refinement", loss, n_steps, learning_rate_end=1e-5, replay=replay)
