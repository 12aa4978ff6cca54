"""How long everything of figure 1 takes, and what the paper leaves open about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from boltzgen.energy.analytic import DoubleWell
from boltzgen.reproduce.curves import Refinement
from boltzgen.reproduce.double_well_data import SOURCE
from boltzgen.reproduce.double_well_flow import Pretraining
from boltzgen.reproduce.report import Choice

__all__ = ["CURVES", "SETTINGS", "CurveKind", "Settings", "choices"]


@dataclass(frozen=True)
class CurveKind:
    """A refinement by name: what it starts from, and with which loss."""

    name: str
    label: str
    start: str
    loss: str


# The paper shows KL_x. Its other losses it shows for molecules, after the one pre-training of 10,000 steps.
CURVES = (
    CurveKind("kl-x-partial", "KL_x after partial pre-training", "partial", "reverse-kl"),
    CurveKind("kl-x-complete", "KL_x after complete pre-training", "complete", "reverse-kl"),
    CurveKind("kl-z-df-partial", "KL_z data-free after partial", "partial", "weighted-forward-kl"),
    CurveKind("kl-z-df-complete", "KL_z data-free after complete", "complete", "weighted-forward-kl"),
    CurveKind("l2+-partial", "L2+ after partial", "partial", "l2+"),
    CurveKind("l2+-complete", "L2+ after complete", "complete", "l2+"),
)


@dataclass(frozen=True)
class Settings:
    """How long everything takes.

    Attributes
    ----------
    partial, complete : Pretraining
    refinement : Refinement
        Of all losses alike; ``loss`` is replaced.
    n_measured : int
        Samples that each point of a curve is measured with.
    n_rest : int
        Samples of which `Rest` is, at the end of L2+.
    """

    partial: Pretraining
    complete: Pretraining
    refinement: Refinement
    n_measured: int
    n_rest: int = 200_000

    def shortened(self, share: float) -> Settings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        cut = lambda n: max(2, round(share * n))
        shorter = lambda p: replace(p, n_steps=cut(p.n_steps), n_data=max(200, cut(p.n_data)))
        steps = cut(self.refinement.n_steps)
        refinement = replace(self.refinement, n_steps=steps, measure_every=max(1, steps // 4))
        n_measured = max(500, cut(self.n_measured))
        n_rest = max(2 * refinement.batch_size, cut(self.n_rest))
        return Settings(shorter(self.partial), shorter(self.complete), refinement, n_measured, n_rest)


SETTINGS = {
    "quick": Settings(
        partial=Pretraining(n_steps=800, n_data=20_000),
        complete=Pretraining(n_steps=2000, n_data=20_000),
        refinement=Refinement("", n_steps=2000, batch_size=256, learning_rate=1e-4, measure_every=100),
        n_measured=20_000,
    ),
    "paper": Settings(
        partial=Pretraining(n_steps=1000, n_data=100_000),
        complete=Pretraining(n_steps=10_000, n_data=100_000),
        refinement=Refinement("", n_steps=100_000, batch_size=256, learning_rate=1e-4, measure_every=1000),
        n_measured=50_000,
    ),
}


def choices(settings: Settings, target: DoubleWell) -> list[Choice]:
    """What the paper leaves open, or what is done otherwise here."""
    well = target.well
    refinement, part, full = settings.refinement, settings.partial, settings.complete
    return [
        Choice(
            "first coordinate",
            '"bimodal", "similar to" Noé et al. (2019)',
            f"u = {well.linear:g} x {well.quadratic:+g} x^2 {well.quartic:+g} x^4, the constants of their code: "
            f"{100 * target.minor_population:.2f} % in the minor mode",
        ),
        Choice("temperature", "not given", "energies in units of kT"),
        Choice(
            "data",
            "Metropolis-Hastings with parallel tempering; how many, not given",
            f"{full.n_data:,} samples by {SOURCE}; a tenth held out; the weights with the lowest held-out loss",
        ),
        Choice(
            "flow", "8 x 4 couplings of 64, CELU", "the same; each scales by at most e^0.25, and starts as identity"
        ),
        Choice("base distribution", "normal, its sigma not given", "standard normal"),
        Choice("pre-training, partial", "length not given", f"{part.n_steps:,} steps"),
        Choice("pre-training, complete", "10,000 steps", f"{full.n_steps:,} steps"),
        Choice("refinement", "100,000 steps", f"{refinement.n_steps:,} steps"),
        Choice("batch size", "not given", f"{refinement.batch_size}, and {full.batch_size} in the pre-training"),
        Choice(
            "optimiser",
            "not given",
            f"Adam, {full.learning_rate:g} in the pre-training (to zero on a cosine), {refinement.learning_rate:g} "
            "in the refinement (constant)",
        ),
        Choice(
            "safeguards",
            "caps on the gradient of each energy term, for molecules",
            "gradients clipped at norm 50, log u beyond 100 kT above the median of a batch; steps without a finite "
            "gradient left out",
        ),
        Choice(
            "weights of KL_z data-free", "divided by the batch size (eq. 7)", "divided by their sum (1/Z of eq. 20e)"
        ),
        Choice("start of KL_z data-free and L2+", "not shown for the double well", "either pre-training"),
    ]
