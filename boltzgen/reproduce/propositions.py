"""Appendix I: what KL does without normalisation, and what normalisation and K* do to the variance of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from boltzgen.energy.analytic import DoubleWell
from boltzgen.reproduce.claims import Figures, examine, markdown_table
from boltzgen.reproduce.double_well import SETTINGS as DOUBLE_WELL
from boltzgen.reproduce.double_well import start
from boltzgen.reproduce.double_well_flow import Pretraining
from boltzgen.reproduce.gradient_variance import Noise, exact_gradient, gradient_noise
from boltzgen.reproduce.propositions_claims import CLAIMS
from boltzgen.reproduce.propositions_figure import draw
from boltzgen.reproduce.report import Choice, Report
from boltzgen.reproduce.unconstrained import Descent, descend, fixed_minibatch, random_start

__all__ = ["SETTINGS", "Settings", "run"]

FLOWS = ("partial", "complete")
EXACT_SEED, NOISE_SEED, FIXED_SEED = 5000, 6000, 7000


@dataclass(frozen=True)
class Settings:
    """How much is computed.

    Attributes
    ----------
    partial, complete : Pretraining
        Of the flows at which gradients are compared: those of the double well.
    times : tuple of float
        At which the unconstrained descent is looked at.
    n_batches, batch_size : int
        Of the comparison.
    n_warm : int
        Minibatches from which K* is known.
    n_exact : int
        Exact samples of the gradient that minibatches are compared with.
    fixed_samples, fixed_steps : int
        Of the descent with one minibatch.
    fixed_rate : float
        Of Adam, for it.
    """

    partial: Pretraining
    complete: Pretraining
    times: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
    n_batches: int = 200
    batch_size: int = 256
    n_warm: int = 100
    n_exact: int = 200_000
    fixed_samples: int = 64
    fixed_steps: int = 300
    fixed_rate: float = 1e-3

    def shortened(self, share: float) -> Settings:
        """The same with a share of all batches and samples, to try whether it runs; it shows nothing then."""
        cut = lambda n: max(3, round(share * n))
        shorter = lambda p: replace(p, n_steps=cut(p.n_steps), n_data=max(200, cut(p.n_data)))
        counts = {name: cut(getattr(self, name)) for name in ("n_batches", "n_warm", "n_exact", "fixed_steps")}
        return replace(self, partial=shorter(self.partial), complete=shorter(self.complete), **counts)


SETTINGS = {
    "quick": Settings(DOUBLE_WELL["quick"].partial, DOUBLE_WELL["quick"].complete),
    "paper": Settings(
        *(DOUBLE_WELL["paper"].partial, DOUBLE_WELL["paper"].complete),
        n_batches=2000,
        n_exact=1_000_000,
        fixed_steps=3000,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What was found with one seed."""

    descent: Descent
    fixed: dict[str, list[float]]
    noise: dict[str, dict[str, Noise]]
    agreement: dict[str, float]

    def figures(self) -> Figures:
        """By name, for the claims."""
        last = self.descent.times[-1]
        values = {
            "tv_root": self.descent.distance(self.descent.root)[-1],
            "tv_target": self.descent.distance(self.descent.p)[-1],
            "mass": float(self.descent.mass[-1]),
            "mass_ratio": float(self.descent.mass[-1]) / (math.sqrt(2 * last) * self.descent.root_mass),
            "error": self.descent.error,
            "kl": self.descent.divergence()[-1],
            "kl_paper": 0.5 * self.descent.entropy - 0.5 * math.log(2 * last),
            "kl_minus": -0.5 * self.descent.entropy - 0.5 * math.log(2 * last),
            "fixed_unnormalised": self.fixed["unnormalised"][-1],
            "fixed_normalised": self.fixed["normalised"][-1],
        }
        for name, noise in self.noise.items():
            share = lambda first, second, noise=noise: noise[first].variance / noise[second].variance
            values |= {
                f"{name}.normalised": share("KL(p_d || q_d)", "KL(p_d || q)"),
                f"{name}.cosine": noise["KL(p_d || q)"].cosine,
                f"{name}.cosine_normalised": noise["KL(p_d || q_d)"].cosine,
                f"{name}.one": share("weighted, K = 1", "weighted"),
                f"{name}.star": share("weighted, K*", "weighted"),
            }
        return values

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the densities on the grid are left out."""
        return {
            "descent": {
                "times": list(self.descent.times),
                "mass": self.descent.mass.tolist(),
                "tv_target": self.descent.distance(self.descent.p),
                "tv_root": self.descent.distance(self.descent.root),
                "divergence": self.descent.divergence(),
                "entropy_nats": self.descent.entropy,
            },
            "fixed_minibatch_log_mass": self.fixed,
            "gradients": {
                flow: {name: noise.as_dict() for name, noise in found.items()} for flow, found in self.noise.items()
            },
            "agreement_of_exact_halves": self.agreement,
        }


def run(
    settings: Settings,
    seeds: Sequence[int],
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    scale: str = "own settings",
) -> Report:
    """The experiment with settings of one's own; parameters as those of `boltzgen.reproduce.double_well`."""
    found = {seed: _outcome(settings, seed, folder, say, scale) for seed in seeds}
    return Report(
        name="propositions",
        title="Appendix I: normalisation and gradient variance",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, {seed: outcome.figures() for seed, outcome in found.items()}),
        choices=_choices(settings),
        settings=asdict(settings),
        values={"outcomes": {str(seed): outcome.as_dict() for seed, outcome in found.items()}},
        draw=partial(
            draw,
            {seed: outcome.descent for seed, outcome in found.items()},
            {seed: outcome.fixed for seed, outcome in found.items()},
            {seed: outcome.noise for seed, outcome in found.items()},
        ),
        notes=[
            "Proposition I.1 gives KL(p || sqrt(2 t p)) as H/2 - log(2t)/2. With H the entropy, -integral of p log p, "
            "the integral is -H/2 - log(2t)/2; both are shown beside the numerical one.",
            "Gradients by all parameters of the flow at once. K* and K = 1 leave the expectation of the weighted "
            "gradient as it is; KL(p_d || q) and KL(p_d || q_d) have different ones, and neither is that of KL(p || q) "
            "where samples come from q: the cosines say how near they are. Weights p / q mend that.",
        ],
        tables={"Minibatch gradients": _table(found)},
    )


def _outcome(settings: Settings, seed: int, folder: Path | None, say: Callable[[str], None], scale: str) -> Outcome:
    descent = descend(DoubleWell(1), random_start(seed), settings.times)
    say(
        f"propositions, seed {seed}: unconstrained descent to t = {settings.times[-1]:g}, mass "
        f"{float(descent.mass[-1]):.3g}, largest relative error {descent.error:.1e}"
    )
    noise, agreement = {}, {}
    for name in FLOWS:
        flow = start(name, settings.partial if name == "partial" else settings.complete, seed, folder, scale)
        if name == "partial":
            fixed = fixed_minibatch(
                *(flow, settings.fixed_samples, settings.fixed_steps, settings.fixed_rate), seed=FIXED_SEED + seed
            )
            say(
                f"propositions, seed {seed}: one minibatch for {settings.fixed_steps:,} steps, its log mass "
                f"{fixed['unnormalised'][-1]:+.1f} unnormalised, {fixed['normalised'][-1]:+.1f} normalised"
            )
        exact, agreement[name] = exact_gradient(flow, settings.n_exact, EXACT_SEED + seed)
        noise[name] = gradient_noise(
            flow,
            exact,
            n_batches=settings.n_batches,
            batch_size=settings.batch_size,
            n_warm=settings.n_warm,
            seed=NOISE_SEED + seed,
        )
        ratio = noise[name]["weighted, K*"].variance / noise[name]["weighted"].variance
        say(f"propositions, seed {seed}: gradients at the flow of {name} pre-training, variance with K* {ratio:.2f}")
    return Outcome(descent, fixed, noise, agreement)


def _table(found: dict[int, Outcome]) -> str:
    rows = []
    for seed, outcome in found.items():
        for flow, estimators in outcome.noise.items():
            for name, noise in estimators.items():
                rows.append(
                    (name, flow, str(seed), f"{noise.variance:.3g}", f"{noise.mean_square:.2g}", f"{noise.cosine:.3f}")
                    + (f"{noise.mean_cosine:.3f}", f"{outcome.agreement[flow]:.3f}")
                )
    columns = ("gradient of", "flow", "seed", "variance (trace)", "square of the mean", "cosine, single")
    return markdown_table((*columns, "cosine, mean", "cosine, halves of the exact one"), rows)


def _choices(settings: Settings) -> list[Choice]:
    return [
        Choice("target of proposition I.1", "any", "the bimodal coordinate of the double well, on 2,001 points"),
        Choice("start q0", "any", "normal, centre in [-1, 1] and width in [1, 2] drawn by the seed"),
        Choice(
            "flows",
            "not given",
            f"8 x 4 couplings on the double well, after {settings.partial.n_steps:,} and "
            f"{settings.complete.n_steps:,} steps of KL_z",
        ),
        Choice(
            "samples",
            "uniform in space (J.6)",
            f"{settings.n_batches:,} minibatches of {settings.batch_size} from the flow, as in a training; K* is for "
            "weights p / q and d log q instead of p and dq",
        ),
        Choice("K*", "running means over past minibatches", f"decay 0.99, {settings.n_warm} minibatches before"),
        Choice("exact gradient", "-", f"of -E_p[log q] on {settings.n_exact:,} exact samples"),
        Choice(
            "corollary I.1",
            "one and the same minibatch",
            f"{settings.fixed_samples} samples of the partial flow, {settings.fixed_steps:,} steps of Adam at "
            f"{settings.fixed_rate:g}",
        ),
    ]
