"""Figure 1: refinements of a double well in twelve dimensions, after pre-trainings of two lengths.

The first coordinate is bimodal, eleven others are normal with a standard deviation of 10, which the flow has to learn:
"the lack of normalization is intended to exhibit how difficult this task already is for KL_x" (section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from boltzgen.energy.analytic import DoubleWell
from boltzgen.generator import BoltzmannGenerator
from boltzgen.progress import format_duration
from boltzgen.reproduce.claims import Figures, examine
from boltzgen.reproduce.curves import Curve, Refinement, refine
from boltzgen.reproduce.double_well_claims import CLAIMS
from boltzgen.reproduce.double_well_figure import Cloud, draw
from boltzgen.reproduce.double_well_flow import Measured, Pretraining, double_well, measure, pretrained
from boltzgen.reproduce.report import Choice, Report, markdown_table

__all__ = ["CURVES", "SETTINGS", "CurveKind", "Settings", "run", "run_settings"]

N_SHOWN = 2000  # samples of a cloud
BOTTOM = 1.0  # kT above the minimum of a well


@dataclass(frozen=True)
class CurveKind:
    """A refinement by name: what it starts from, and with which loss."""

    name: str
    label: str
    start: str
    loss: str


CURVES = (
    CurveKind("kl-x-partial", "KL_x after partial pre-training", "partial", "reverse-kl"),
    CurveKind("kl-x-complete", "KL_x after complete pre-training", "complete", "reverse-kl"),
    CurveKind("kl-z-df", "KL_z data-free after partial pre-training", "partial", "weighted-forward-kl"),
    CurveKind("l2+", "L2+ after partial pre-training", "partial", "l2+"),
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
    """

    partial: Pretraining
    complete: Pretraining
    refinement: Refinement
    n_measured: int

    def shortened(self, share: float) -> Settings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        cut = lambda n: max(2, round(share * n))
        shorter = lambda p: replace(p, n_steps=cut(p.n_steps), n_data=max(200, cut(p.n_data)))
        steps = cut(self.refinement.n_steps)
        refinement = replace(self.refinement, n_steps=steps, measure_every=max(1, steps // 4))
        n_measured = max(500, cut(self.n_measured))
        return Settings(shorter(self.partial), shorter(self.complete), refinement, n_measured)


SETTINGS = {
    "quick": Settings(
        partial=Pretraining(n_steps=300, n_data=20_000),
        complete=Pretraining(n_steps=1500, n_data=20_000),
        refinement=Refinement("", n_steps=600, batch_size=256, learning_rate=1e-4, measure_every=30),
        n_measured=20_000,
    ),
    "paper": Settings(
        partial=Pretraining(n_steps=1000, n_data=100_000),
        complete=Pretraining(n_steps=10_000, n_data=100_000),
        refinement=Refinement("", n_steps=100_000, batch_size=256, learning_rate=1e-4, measure_every=1000),
        n_measured=50_000,
    ),
}


def run(scale: str, seeds: Sequence[int], folder: Path | None, say: Callable[[str], None]) -> Report:
    """The experiment at one of its scales; see `boltzgen.reproduce.reproduce`."""
    return run_settings(SETTINGS[scale], seeds, folder, say, scale=scale)


def run_settings(
    settings: Settings,
    seeds: Sequence[int],
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    scale: str = "own settings",
) -> Report:
    """The experiment with settings of one's own.

    Parameters
    ----------
    settings : Settings
    seeds : sequence of int
    folder : Path, optional
        Checkpoints go to ``folder/checkpoints``; nowhere if absent.
    say : callable
        Takes a line for every curve.

    Raises
    ------
    CheckpointError, RunInterrupted, OutputError
        See `boltzgen.reproduce.reproduce`.
    """
    target = double_well(settings.complete)
    checkpoints = None if folder is None else folder / "checkpoints" / f"double-well-{scale.replace(' ', '-')}"
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
    curves: dict[int, dict[str, Curve]] = {}
    figures: dict[int, Figures] = {}
    clouds: dict[str, Cloud] = {"dataset": _cloud(target.sample(N_SHOWN, torch.Generator().manual_seed(1)), target)}
    for seed in seeds:
        place = lambda name, seed=seed: None if checkpoints is None else checkpoints / f"seed{seed}-{name}.pt"
        starts = {}
        for name, pretraining in (("partial", settings.partial), ("complete", settings.complete)):
            starts[name] = pretrained(pretraining, seed, place(f"pretrained-{name}"))
            say(f"double well, seed {seed}: {name} pre-training of {pretraining.n_steps:,} steps is done")
        curves[seed], ends = {}, {}
        for kind in CURVES:
            curves[seed][kind.name], ends[kind.name] = _curve(
                kind, starts[kind.start], settings, place(kind.name), seed
            )
            say(f"double well, seed {seed}: {describe(kind, curves[seed][kind.name])}, true {_true(target):.2f} %")
        figures[seed] = _figures(target, starts, curves[seed], settings.n_measured)
        if seed == seeds[0]:
            clouds |= {name: _cloud(_sample(generator), target) for name, generator in (starts | ends).items()}
    return Report(
        name="double-well",
        title="Double well in 12 dimensions: figure 1",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, figures),
        choices=_choices(settings, target),
        settings=asdict(settings),
        values={
            "true_minor_percent": _true(target),
            "figures": {str(seed): dict(values) for seed, values in figures.items()},
            "curves": {str(seed): {k: c.as_dict() for k, c in found.items()} for seed, found in curves.items()},
        },
        draw=partial(draw, target, curves, clouds, {kind.name: kind.label for kind in CURVES}, seeds[0]),
        notes=[
            "Percentages in the minor mode are of the samples as generated, without weights, the mean over the last "
            f"quarter of the refinement; {settings.n_measured:,} samples a point."
        ],
        tables={"Refinements": _table(curves)},
    )


def describe(kind: CurveKind, curve: Curve) -> str:
    """One line of progress."""
    if curve.failed is not None:
        return f"{kind.label} failed after {curve.steps[-1]:,} steps ({curve.failed})"
    minor = curve.values["minor"]
    return (
        f"{kind.label}, {curve.steps[-1]:,} steps in {format_duration(curve.seconds)}, minor mode "
        f"{minor[0]:.2f} -> {minor[-1]:.2f} %"
    )


def _curve(
    kind: CurveKind, start: BoltzmannGenerator, settings: Settings, checkpoint: Path | None, seed: int
) -> tuple[Curve, BoltzmannGenerator]:
    pretraining = settings.partial if kind.start == "partial" else settings.complete
    identity = {"seed": seed, "n_measured": settings.n_measured, "start": str(pretraining)}
    return refine(
        start,
        replace(settings.refinement, loss=kind.loss),
        lambda generator: measure(generator, settings.n_measured).as_dict(),
        checkpoint=checkpoint,
        identity=identity,
    )


def _figures(
    target: DoubleWell, starts: dict[str, BoltzmannGenerator], curves: dict[str, Curve], n_measured: int
) -> dict[str, float]:
    """The figures of one seed that the claims look at."""
    values = {"true": _true(target)}
    for name, generator in starts.items():
        at_start = measure(generator, n_measured)
        values |= {name: at_start.minor, f"{name}.ess": at_start.ess}
    for name, curve in curves.items():
        values |= {name: curve.late("minor"), f"{name}.ess": curve.late("ess")}
    here = _bottoms(target, _sample(starts["partial"], n_measured))
    true = _bottoms(target, target.sample(max(n_measured, 20_000), torch.Generator().manual_seed(2)))
    return values | {f"bottom_{name}": float(here[name] / true[name]) for name in here}


def _bottoms(target: DoubleWell, positions: Tensor) -> dict[str, float]:
    """Shares of the samples that lie within 1 kT of the minimum of either well, by the energy of x1 alone."""
    first, in_minor = positions[:, 0, 0].double(), target.in_minor_well(positions)
    energy = target.well.energy(first)
    minima = torch.as_tensor(target.well.stationary[[0, 2]])
    lowest = target.well.energy(minima)
    minor = target.in_minor_well(minima.reshape(-1, 1, 1))
    low = {name: energy <= lowest[which] + BOTTOM for name, which in (("major", ~minor), ("minor", minor))}
    return {
        "major": float((low["major"] & ~in_minor).double().mean()),
        "minor": float((low["minor"] & in_minor).double().mean()),
    }


def _true(target: DoubleWell) -> float:
    return 100 * target.minor_population


def _sample(generator: BoltzmannGenerator, n: int = N_SHOWN) -> Tensor:
    with torch.no_grad():
        return generator.flow.sample_and_log_prob(n, torch.Generator().manual_seed(3))[0].double()


def _cloud(positions: Tensor, target: DoubleWell) -> Cloud:
    """First and second coordinate and reduced energy, each (n,)."""
    energy = target(positions) / target.kT
    return Cloud(positions[:, 0, 0].numpy(), positions[:, 0, 1].numpy(), energy.numpy())


def _table(curves: dict[int, dict[str, Curve]]) -> str:
    labels = {kind.name: kind.label for kind in CURVES}
    rows = []
    for seed, found in curves.items():
        for name, curve in found.items():
            first, last = ({k: v[i] for k, v in curve.values.items()} for i in (0, -1))
            before, after = Measured(**first), Measured(**last)
            end = "failed" if curve.failed is not None else f"{curve.late('minor'):.2f}"
            rows.append(
                (labels[name], str(seed), f"{before.minor:.2f}", end, f"{after.minor:.2f}", f"{after.reweighted:.2f}")
                + (f"{before.ess:.1f}", f"{after.ess:.1f}", f"{after.mean_energy:.2f}", f"{curve.skipped}")
            )
    columns = ("refinement", "seed", "minor % at start", "last quarter", "last", "last, reweighted")
    return markdown_table((*columns, "ESS % at start", "last ESS %", "last mean u", "steps left out"), rows)


def _choices(settings: Settings, target: DoubleWell) -> list[Choice]:
    well = target.well
    refinement, part, full = settings.refinement, settings.partial, settings.complete
    return [
        Choice(
            "first coordinate",
            '"bimodal", "similar to" Noé et al. (2019)',
            f"u = {well.linear:g} x {well.quadratic:+g} x^2 {well.quartic:+g} x^4, the constants of their code: "
            f"{_true(target):.2f} % in the minor mode",
        ),
        Choice("temperature", "not given", "energies in units of kT"),
        Choice(
            "data",
            "Metropolis-Hastings with parallel tempering; how many, not given",
            f"{full.n_data:,} exact independent samples, a tenth held out; the weights with the lowest held-out loss",
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
        Choice("start of KL_z data-free and L2+", "not shown for the double well", "the partial pre-training"),
    ]
