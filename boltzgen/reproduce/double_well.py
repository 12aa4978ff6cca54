"""Figure 1: refinements of a double well in twelve dimensions, after pre-trainings of two lengths.

The first coordinate is bimodal, eleven others are normal with a standard deviation of 10, which the flow has to learn:
"the lack of normalization is intended to exhibit how difficult this task already is for KL_x" (section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from boltzgen.energy.analytic import DoubleWell
from boltzgen.generator import BoltzmannGenerator
from boltzgen.output_files import OutputFolder
from boltzgen.progress import format_duration
from boltzgen.reproduce.claims import Figures, examine, markdown_table
from boltzgen.reproduce.curves import Curve, refine
from boltzgen.reproduce.double_well_claims import CLAIMS
from boltzgen.reproduce.double_well_data import SOURCE
from boltzgen.reproduce.double_well_figure import Cloud, draw
from boltzgen.reproduce.double_well_flow import Measured, Pretraining, double_well, measure, pretrained, training_data
from boltzgen.reproduce.double_well_settings import CURVES, SETTINGS, CurveKind, Settings, choices
from boltzgen.reproduce.report import Report
from boltzgen.reproduce.rest import RESTS, WHERE_IT_RESTS, Rest, rest, rest_table

__all__ = ["CURVES", "SETTINGS", "CurveKind", "Settings", "run", "start"]

N_SHOWN = 2000  # samples of a cloud
BOTTOM = 1.0  # kT above the minimum of a well


def run(
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
    curves: dict[int, dict[str, Curve]] = {}
    figures: dict[int, Figures] = {}
    rests: dict[int, dict[str, Rest]] = {}
    data = torch.as_tensor(training_data(settings.complete, seeds[0]).positions)
    clouds: dict[str, Cloud] = {"dataset": _cloud(data[:: max(1, len(data) // N_SHOWN)][:N_SHOWN], target)}
    for seed in seeds:
        starts = {}
        for name, pretraining in (("partial", settings.partial), ("complete", settings.complete)):
            starts[name] = start(name, pretraining, seed, folder, scale)
            say(f"double well, seed {seed}: {name} pre-training of {pretraining.n_steps:,} steps is done")
        curves[seed], ends = {}, {}
        for kind in CURVES:
            checkpoint = _checkpoint(folder, scale, seed, kind.name)
            curve, ends[kind.name] = _curve(kind, starts[kind.start], settings, checkpoint, seed)
            curves[seed][kind.name] = curve
            say(f"double well, seed {seed}: {describe(kind, curve)}, true {_true(target):.2f} %")
        rests[seed] = {
            kind.label: rest(ends[kind.name], target.in_minor_well, settings.n_rest, settings.refinement.batch_size)
            for kind in CURVES
            if kind.loss == "l2+"
        }
        figures[seed] = _figures(target, starts, curves[seed], settings.n_measured)
        if seed == seeds[0]:
            clouds |= {name: _cloud(_sample(generator), target) for name, generator in (starts | ends).items()}
    return Report(
        name="double-well",
        title="Double well in 12 dimensions: figure 1",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, figures),
        choices=choices(settings, target),
        settings=asdict(settings),
        values={
            "true_minor_percent": _true(target),
            "figures": {str(seed): dict(values) for seed, values in figures.items()},
            "curves": {str(seed): {k: c.as_dict() for k, c in found.items()} for seed, found in curves.items()},
            "rest": {str(seed): {label: asdict(one) for label, one in some.items()} for seed, some in rests.items()},
        },
        draw=partial(draw, target, curves, clouds, {kind.name: kind.label for kind in CURVES}, seeds[0]),
        notes=[
            "Percentages in the minor mode are of the samples as generated, without weights, the mean over the last "
            f"quarter of the refinement; {settings.n_measured:,} samples a point.",
            f"Wall time of all refinements: {format_duration(_seconds(curves))}, without the pre-trainings.",
            RESTS,
        ],
        tables={
            "Refinements": _table(curves),
            WHERE_IT_RESTS: rest_table(
                (label, seed, _true(target), one) for seed, some in rests.items() for label, one in some.items()
            ),
        },
    )


def start(name: str, pretraining: Pretraining, seed: int, folder: Path | None, scale: str) -> BoltzmannGenerator:
    """A pre-trained generator, kept in the folder of the checkpoints and found again there.

    Raises
    ------
    CheckpointError, OutputError
    """
    return pretrained(pretraining, seed, _checkpoint(folder, scale, seed, f"pretrained-{name}"))


def _checkpoint(folder: Path | None, scale: str, seed: int, name: str) -> Path | None:
    if folder is None:
        return None
    checkpoints = OutputFolder(folder / "checkpoints" / f"double-well-{scale.replace(' ', '-')}", resume=True)
    checkpoints.claim()
    return checkpoints / f"seed{seed}-{name}.pt"


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
    identity = {"seed": seed, "n_measured": settings.n_measured, "start": f"{pretraining}, {SOURCE}"}
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


def _seconds(curves: dict[int, dict[str, Curve]]) -> float:
    """Also of what earlier calls left in checkpoints."""
    return sum(curve.seconds for found in curves.values() for curve in found.values())


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
