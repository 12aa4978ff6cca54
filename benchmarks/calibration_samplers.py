"""Samplers that start from a generator, repeated: one long run each, cut into independent repetitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from calibration_counts import Counts, blocks, pieces, tally
from calibration_targets import (
    MEANS,
    SHARES,
    MixtureFlow,
    curved_generator,
    first,
    harmonic_generator,
    is_right,
    right_share,
)

from boltzgen import free_energy as fe
from boltzgen.energy import GaussianMixture
from boltzgen.ensemble import Ensemble
from boltzgen.generator import BoltzmannGenerator
from boltzgen.sampling import annealed_importance, flow_chains, latent_chains

N_REPEATS, N_PARTICLES = 20, 24
MEAN = float(SHARES @ MEANS[:, 0])
TRUTH = right_share()
LOG_ODDS = -math.log(TRUTH / (1 - TRUTH))


def poor_generator() -> BoltzmannGenerator:
    """One wide normal distribution over both modes of the mixture."""
    target = GaussianMixture(MEANS, 1.0, SHARES)
    return BoltzmannGenerator(MixtureFlow(GaussianMixture([[0.0, 0.5]], 2.5)), target, kT=1.0)


def particles(repetitions: int, seed: int) -> Iterator[Counts]:
    """Sequential Monte Carlo and annealed importance sampling along a given path."""
    yield annealed(repetitions, seed, schedule=[0.15, 0.4, 0.7, 1.0], n_leapfrog=2)


def piloted_particles(repetitions: int, seed: int) -> Iterator[Counts]:
    """The same with Langevin moves, along a path that a pilot chooses."""
    yield annealed(repetitions, seed, moves="langevin", n_moves=2, conditional_ess=0.8)


def annealed(repetitions: int, seed: int, **options: Any) -> Counts:
    """log Z and a free energy of either sampler."""
    counts: Counts = {}
    for name, below in (("sequential Monte Carlo", 0.7), ("annealed importance sampling", 0.0)):
        options["resample_below"] = below
        for block in blocks(repetitions, 500):
            n_repeats = N_REPEATS * len(block)
            whole = annealed_importance(poor_generator(), N_PARTICLES, n_repeats, seed=seed + block[0], **options)
            for one in pieces(whole, N_REPEATS * N_PARTICLES):
                tally(counts, f"log Z, {name}", one.log_z, 0.0)
                tally(counts, f"ΔF, {name}", fe.free_energy_of(one, is_right(one.positions)), LOG_ODDS)
    return counts


def chains(repetitions: int, seed: int) -> Iterator[Counts]:
    """Chains whose proposals are the samples of a generator."""
    counts: Counts = {}
    for name, n_chains, n_rounds in (("40 chains", 40, 60), ("one chain", 1, 2500)):
        for one in repeated(flow_chains, poor_generator, n_chains, n_rounds, repetitions, seed + 7, n_local=0):
            count_mixture(counts, name, one)
    yield counts


def moving_chains(repetitions: int, seed: int) -> Iterator[Counts]:
    """The same with local moves."""
    counts: Counts = {}
    for one in repeated(flow_chains, poor_generator, 40, 40, repetitions, seed + 7, n_leapfrog=2):
        count_mixture(counts, "40 chains", one)
    yield counts


def latent(repetitions: int, seed: int) -> Iterator[Counts]:
    """Chains among the base variables of a curved flow, with each kind of local move."""
    counts: Counts = {}
    for name, n_chains, n_rounds, options in (
        ("40 chains, hmc", 40, 40, {"n_leapfrog": 2}),
        ("40 chains, langevin", 40, 40, {"moves": "langevin"}),
        ("40 chains, autoregressive", 40, 40, {"moves": "autoregressive"}),
        ("one chain, langevin", 1, 1500, {"moves": "langevin", "block_size": 2000}),
    ):
        for one in repeated(latent_chains, curved_generator, n_chains, n_rounds, repetitions, seed + 13, **options):
            count_mixture(counts, name, one)
    yield counts


def latent_of_molecule(repetitions: int, seed: int) -> Iterator[Counts]:
    """Chains among the angles and normal variables of a molecule's generator."""
    generator, known = harmonic_generator(seed)
    counts: Counts = {}
    for one in repeated(latent_chains, lambda: generator, 20, 50, repetitions, seed + 17, moves="langevin"):
        tally(
            counts, "ΔF of a region, 20 chains, langevin", one.free_energy({"near": known.region})["near"], known.odds
        )
    yield counts


def repeated(
    sampler: Callable[..., Ensemble],
    generator: Callable[[], BoltzmannGenerator],
    n_chains: int,
    n_rounds: int,
    repetitions: int,
    seed: int,
    block_size: int = 250,
    **options: Any,
) -> Iterator[Ensemble]:
    """Independent repetitions of `n_chains` chains: the chains of a run know nothing of each other but step sizes."""
    for block in blocks(repetitions, block_size):
        whole = sampler(generator(), n_chains * len(block), n_rounds, seed=seed + block[0], burn_in=0.2, **options)
        samples = np.arange(len(whole)).reshape(-1, len(block), n_chains)  # round by round
        for k in range(len(block)):
            yield whole[samples[:, k].ravel()]


def count_mixture(counts: Counts, name: str, ensemble: Ensemble) -> None:
    """A mean and a free energy of the mixture."""
    tally(counts, f"<x>, {name}", fe.expectation(ensemble, first), MEAN)
    tally(counts, f"ΔF, {name}", fe.free_energy_of(ensemble, is_right(ensemble.positions)), LOG_ODDS)
