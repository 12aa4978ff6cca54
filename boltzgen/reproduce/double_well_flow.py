"""The double well of the paper with its flow: how they are pre-trained and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.energy.analytic import DoubleWell
from boltzgen.ensemble import Ensemble
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.reproduce.curves import kept_pretraining
from boltzgen.reproduce.double_well_data import SOURCE, tempered_samples

__all__ = ["Measured", "Pretraining", "UnscaledFlow", "double_well", "measure", "pretrained", "training_data"]

DATA_SEED = 1000  # plus the seed: data are not the numbers that the flow starts from
MEASURE_SEED = 17  # the same base variables at every step and for every loss: differences are those of the flows


class UnscaledFlow(CartesianFlow):
    """A `CartesianFlow` that learns all of its target, its centre and its widths too.

    The "lack of normalization is intended" in the paper: coordinates of width 10 and 1 are mapped from a base of width
    one by the couplings alone.
    """

    def start_at(self, positions: Tensor, weights: Tensor) -> None:
        """Nothing: a `CartesianFlow` would take centre and covariance of the data."""


@dataclass(frozen=True)
class Pretraining:
    """A flow on the double well, and how it is pre-trained on samples of it.

    Attributes
    ----------
    n_steps : int
    n_data : int
        By `tempered_samples`. A tenth is held out; the weights with the lowest held-out loss are kept.
    batch_size : int
    learning_rate : float
        Of Adam, to zero on a cosine.
    n_rounds, n_hidden : int
        Of the flow: rounds of four couplings, and features.
    dimension : int
    scale : float
        Standard deviation of all coordinates but the first.
    normalised : bool
        Whether the flow starts with centre and covariance of the data, which the paper's does not.
    patience : int, optional
        Checks without a gain after which pre-training ends; only after the last step, as in the paper, if absent.
    """

    n_steps: int
    n_data: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    n_rounds: int = 8
    n_hidden: int = 64
    dimension: int = 12
    scale: float = 10.0
    normalised: bool = False
    patience: int | None = None


@dataclass(frozen=True)
class Measured:
    """A generator on the double well, in figures.

    Attributes
    ----------
    minor : float
        Percent of the generated samples in the minor well.
    reweighted : float
        The same after weighting by p / q.
    ess : float
        Effective sample size in percent of n.
    mean_energy : float
        Mean reduced energy of the generated samples.
    lost : float
        Percent of samples without finite energy and density, left out of the figures above.
    """

    minor: float
    reweighted: float
    ess: float
    mean_energy: float
    lost: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def double_well(settings: Pretraining) -> DoubleWell:
    """The target, with the constants of the first coordinate of Noé et al. (2019)."""
    return DoubleWell(settings.dimension, scale=settings.scale)


def pretrained(settings: Pretraining, seed: int, path: Path | None = None) -> BoltzmannGenerator:
    """A generator pre-trained with KL_z (equation 4) on samples by parallel tempering (`tempered_samples`).

    Parameters
    ----------
    settings : Pretraining
    seed : int
        Of weights, data and batches.
    path : Path, optional
        Where the trained weights are kept, and found again.

    Raises
    ------
    CheckpointError, RunInterrupted
        See `boltzgen.reproduce.curves.kept_pretraining`.
    """
    target = double_well(settings)
    kind = CartesianFlow if settings.normalised else UnscaledFlow
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = kind((1, settings.dimension), n_rounds=settings.n_rounds, n_hidden=settings.n_hidden)
    generator = BoltzmannGenerator(flow, target, seed=seed)
    kept_pretraining(
        path,
        generator,
        training_data(settings, seed),
        {"seed": seed, "source": SOURCE, **asdict(settings)},
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        seed=seed,
    )
    return generator


def training_data(settings: Pretraining, seed: int) -> Ensemble:
    """What `pretrained` trains on: the same for the partial and the complete pre-training of a seed."""
    return _data(settings.dimension, settings.scale, settings.n_data, seed)


@lru_cache(maxsize=2)
def _data(dimension: int, scale: float, n_data: int, seed: int) -> Ensemble:
    return tempered_samples(DoubleWell(dimension, scale=scale), n_data, DATA_SEED + seed)


def measure(generator: BoltzmannGenerator, n_samples: int) -> Measured:
    """Figures of a generator on a `DoubleWell`, from samples of one fixed seed.

    Parameters
    ----------
    generator : BoltzmannGenerator
    n_samples : int
        The standard error of a share of 3.3 % is 0.13 % with 20,000.
    """
    target = generator.potential
    if not isinstance(target, DoubleWell):
        raise TypeError(f"this measures generators of a DoubleWell, not of {target.name}")
    with torch.no_grad():
        x, log_q = generator.flow.sample_and_log_prob(n_samples, torch.Generator().manual_seed(MEASURE_SEED))
        x, log_q = x.double(), log_q.double()
        energy = target(x) / target.kT
    valid = torch.isfinite(energy) & torch.isfinite(log_q)
    lost = 100 * float((~valid).double().mean())
    if not bool(valid.any()):
        return Measured(0.0, 0.0, 0.0, float("inf"), lost)
    energy, log_weights = energy[valid], (-energy - log_q)[valid]
    minor = target.in_minor_well(x[valid]).double()
    weighted = float(torch.softmax(log_weights, 0) @ minor)
    ess = effective_sample_fraction(log_weights.numpy())
    return Measured(100 * float(minor.mean()), 100 * weighted, 100 * ess, float(energy.mean()), lost)
