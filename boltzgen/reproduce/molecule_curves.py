"""Pre-training and refinements of a molecule's heavy atoms, and the figures that each point of a curve consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.energy.orientation import draw_rigid_motions
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.output_files import OutputFolder
from boltzgen.plotting.style import Array
from boltzgen.progress import format_duration
from boltzgen.reproduce.claims import markdown_table
from boltzgen.reproduce.curves import Curve, Refinement, kept_pretraining, refine
from boltzgen.reproduce.heavy_atoms import HeavyAtoms
from boltzgen.reproduce.molecule_settings import CurveKind, MoleculeSettings
from boltzgen.training import soft_cap

__all__ = [
    "PULLS",
    "Cloud",
    "Refined",
    "checkpoints_in",
    "cloud_of",
    "first_pulls",
    "measure",
    "oriented_data",
    "pull_table",
    "pulls",
    "refine_all",
]

MEASURE_SEED = 17  # the same base variables at every step and for every loss: differences are those of the flows
ORIENTATION_SEED = 18
PULLS = "What the first step raises, by mode"  # title of a table
N_DATA = 1000  # frames at which the density of a generator is measured


@dataclass(frozen=True, eq=False)
class Cloud:
    """Samples as points.

    Attributes
    ----------
    heavy : (n, n_heavy, 3) array
        nm.
    energy : (n,) array
        U(h(x_C)) in kT.
    surprise : (n,) array
        U_G of the paper: -log q under the generator in question.
    """

    heavy: Array
    energy: Array
    surprise: Array


@dataclass(frozen=True, eq=False)
class Refined:
    """Everything that one seed gives.

    Attributes
    ----------
    start : {figure: value}
        Of the pre-trained generator, with the penalty that it was trained with.
    curves : {name: Curve}
    generators : {name: BoltzmannGenerator}
        At the end of each, and "start".
    pulls : {mode: {what: percent}}
        See `first_pulls`.
    """

    start: Mapping[str, float]
    pulls: Mapping[str, Mapping[str, float]]
    curves: dict[str, Curve]
    generators: dict[str, BoltzmannGenerator]


def checkpoints_in(folder: Path | None, name: str) -> Callable[[str], Path | None]:
    """From names to files in ``folder/checkpoints/name``; to None without a folder."""
    if folder is None:
        return lambda file: None
    checkpoints = OutputFolder(folder / "checkpoints" / name.replace(" ", "-"), resume=True)
    checkpoints.claim()
    return lambda file: checkpoints / f"{file}.pt"


def refine_all(
    heavy: HeavyAtoms,
    settings: MoleculeSettings,
    kinds: Sequence[CurveKind],
    seed: int,
    checkpoint: Callable[[str], Path | None],
    say: Callable[[str], None],
) -> Refined:
    """Pre-train with KL_z on data under the penalty, then refine with every loss.

    Raises
    ------
    CheckpointError, RunInterrupted
        See `boltzgen.reproduce.curves.refine`.
    """
    pretrained = _pretrained(heavy, settings, seed, checkpoint(f"seed{seed}-pretrained"))
    n, data = settings.n_measured, oriented_data(heavy, settings)
    at_start = measure(heavy, pretrained, data, n)
    say(
        f"{heavy.case.name}, seed {seed}: pre-training of {settings.pretraining_steps:,} steps is done, ESS "
        f"{at_start['ess']:.1f} %"
    )
    start = BoltzmannGenerator(
        pretrained.flow,
        heavy.trained_on,
        kT=heavy.kT,
        seed=seed,
        alignment=heavy.penalty(settings.refinement_strength),
    )
    curves: dict[str, Curve] = {}
    generators = {"start": pretrained}
    for kind in kinds:
        curves[kind.name], generators[kind.name] = refine(
            start,
            replace(settings.refinement, loss=kind.loss),
            lambda generator: measure(heavy, generator, data, n),
            checkpoint=checkpoint(f"seed{seed}-{kind.name}"),
            identity={"seed": seed, "settings": settings.trained},
        )
        say(f"{heavy.case.name}, seed {seed}: {describe(kind, curves[kind.name], heavy)}")
    return Refined(at_start, first_pulls(heavy, start, n), curves, generators)


def first_pulls(heavy: HeavyAtoms, start: BoltzmannGenerator, n: int) -> dict[str, dict[str, float]]:
    """How losses that raise log q at weighted samples share their first step among the modes.

    Raising log q at samples with weights c_i lowers it elsewhere: mass moves to a mode that has more of the sum of c
    than of the samples, and away from one that has less.

    Returns
    -------
    {mode: {"samples", "l2+", "kl-z-df"}}
        See `pulls`. With the caps that the losses have, and the penalty of the refinement.
    """
    with torch.no_grad():
        x, log_q = start.flow.sample_and_log_prob(n, torch.Generator().manual_seed(MEASURE_SEED))
        reduced = start.reduced_energy(x)
    valid = torch.isfinite(reduced) & torch.isfinite(log_q)
    log_ratio = (-soft_cap(reduced[valid]) - log_q[valid]).double()
    return {name: pulls(log_ratio, mode(x[valid])) for name, mode in heavy.case.modes.items()}


def pulls(log_ratio: Tensor, inside: Tensor) -> dict[str, float]:
    """What a mode has of the samples, and of the weights with which losses raise log q at them.

    Parameters
    ----------
    log_ratio : (B,) tensor
        r = log p - log q at samples of the generator, finite.
    inside : (B,) bool tensor

    Returns
    -------
    {"samples", "l2+", "kl-z-df"}
        Percent of the samples; of ``(r - K)_+``, K being the mean of r (equation 15); and of p / q (equation 7).
    """
    weights = {
        "samples": torch.ones_like(log_ratio),
        "l2+": (log_ratio - log_ratio.mean()).clamp(min=0),
        "kl-z-df": torch.softmax(log_ratio, 0),
    }
    return {what: 100 * float(w[inside].sum() / w.sum()) for what, w in weights.items()}


def pull_table(refined: Mapping[int, Refined]) -> str:
    """`first_pulls` of every seed in Markdown."""
    rows = [
        (mode, str(seed), *(f"{pull[what]:.2f}" for what in ("samples", "l2+", "kl-z-df")))
        for seed, one in refined.items()
        for mode, pull in one.pulls.items()
    ]
    heads = ("mode", "seed", "% of the samples", "% of (r - K)_+, what L2+ raises", "% of p / q, what KL_z raises")
    return markdown_table(heads, rows)


def describe(kind: CurveKind, curve: Curve, heavy: HeavyAtoms) -> str:
    """One line of progress."""
    if curve.failed is not None:
        return f"{kind.label} failed after {curve.steps[-1]:,} steps ({curve.failed})"
    shares = ", ".join(
        f"{name} {curve.values[name][0]:.2f} -> {curve.values[name][-1]:.2f} %" for name in heavy.case.modes
    )
    return f"{kind.label}, {curve.steps[-1]:,} steps in {format_duration(curve.seconds)}, {shares}"


def oriented_data(heavy: HeavyAtoms, settings: MoleculeSettings) -> Tensor:
    """Heavy atoms of some data (n, n_heavy, 3), oriented as the penalty of the pre-training has it."""
    frames = heavy.heavy(heavy.data)
    penalty = heavy.penalty(settings.pretraining_strength)
    rng = torch.Generator().manual_seed(ORIENTATION_SEED)
    weights = torch.softmax(torch.as_tensor(heavy.data.log_weights), 0)
    rows = torch.multinomial(weights, N_DATA, replacement=True, generator=rng)
    return frames[rows] if penalty is None else draw_rigid_motions(penalty, frames[rows], rng)


def measure(heavy: HeavyAtoms, generator: BoltzmannGenerator, data: Tensor, n: int) -> dict[str, float]:
    """Figures of a generator, from samples of one fixed seed.

    Parameters
    ----------
    data : (n, n_heavy, 3) tensor
        See `oriented_data`.
    n : int
        Samples. The standard error of a share of 10 % is 0.7 % with 2,000.

    Returns
    -------
    dict
        Percent of the samples in each mode; "spread", the root mean square distance of the centre of the heavy atoms
        from its mean, nm; "energy", "energy_mean" and "energy_90", median, mean and last decile of U(h(x_C)) in kT;
        "surprise", the mean of -log q over data; "ess" in percent of n, to the target with the generator's penalty;
        "lost", percent of samples without finite energy and density, left out of the others.
    """
    with torch.no_grad():
        x, log_q = generator.flow.sample_and_log_prob(n, torch.Generator().manual_seed(MEASURE_SEED))
        x, log_q = x.double(), log_q.double()
        energy = heavy.placed(x) / heavy.kT
        surprise = -generator.log_prob(data.to(next(generator.flow.parameters()))).double()
    valid = torch.isfinite(energy) & torch.isfinite(log_q)
    figures = {"lost": 100 * float((~valid).double().mean()), "surprise": float(surprise.mean())}
    if not bool(valid.any()):
        bad = ("spread", "energy", "energy_mean", "energy_90")
        return figures | dict.fromkeys(bad, np.inf) | dict.fromkeys([*heavy.case.modes, "ess"], 0.0)
    x, energy, log_weights = x[valid], energy[valid], (-energy - log_q)[valid]
    if generator.alignment is not None:
        log_weights = log_weights - generator.alignment(x)
    centre = x.mean(1)
    return figures | {
        **{name: 100 * float(mode(x).double().mean()) for name, mode in heavy.case.modes.items()},
        "spread": float((centre - centre.mean(0)).square().sum(1).mean().sqrt()),
        "energy": float(energy.median()),
        "energy_mean": float(energy.mean()),
        "energy_90": float(energy.quantile(0.9)),
        "ess": 100 * effective_sample_fraction(log_weights.numpy()),
    }


def cloud_of(heavy: HeavyAtoms, generator: BoltzmannGenerator, positions: Tensor | None = None, n: int = 1500) -> Cloud:
    """Samples of a generator, or given heavy atoms (n, n_heavy, 3), with their U_B and their U_G under it."""
    like = next(generator.flow.parameters())
    with torch.no_grad():
        if positions is None:
            positions = generator.flow.sample_and_log_prob(n, torch.Generator().manual_seed(MEASURE_SEED))[0]
        surprise = -generator.log_prob(positions.to(like)).double()
        energy = heavy.placed(positions.double()) / heavy.kT
    return Cloud(positions.double().numpy(), energy.numpy(), surprise.numpy())


def _pretrained(heavy: HeavyAtoms, settings: MoleculeSettings, seed: int, path: Path | None) -> BoltzmannGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = CartesianFlow(
            (len(heavy.atoms), 3),
            centre=torch.as_tensor(heavy.reference),
            factor=torch.as_tensor(heavy.factor),
            n_rounds=settings.n_rounds,
            n_hidden=settings.n_hidden,
        )
    generator = BoltzmannGenerator(
        flow, heavy.trained_on, kT=heavy.kT, seed=seed, alignment=heavy.penalty(settings.pretraining_strength)
    )

    batch_size = settings.refinement.batch_size
    same = replace(settings, refinement=Refinement("", 0, batch_size, 0.0, 1), n_measured=0, refinement_strength=0.0)
    kept_pretraining(
        path,
        generator,
        heavy.ensemble(heavy.data),
        {"seed": seed, "settings": same.trained},
        n_steps=settings.pretraining_steps,
        batch_size=batch_size,
        learning_rate=settings.pretraining_rate,
        patience=None,
        seed=seed,
    )
    return generator
