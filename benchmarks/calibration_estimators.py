"""Estimates from independent samples of a generator, repeated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from calibration_counts import Counts, blocks, count_profile, pieces, tally
from calibration_targets import (
    MEANS,
    SHARES,
    cluster_share,
    exact,
    first,
    harmonic_generator,
    is_right,
    many_well_generator,
    mixture_generators,
    mixture_moments,
    right_share,
    second,
)
from scipy.integrate import quad
from scipy.stats import norm

from boltzgen import free_energy as fe

TEMPERATURE_RATIO = 1.25


def mixture(repetitions: int, seed: int) -> Iterator[Counts]:
    """All estimators that need one or two ensembles of independent samples."""
    n, (one, two, delta) = 600, mixture_generators()
    one.rng.manual_seed(seed)
    two.rng.manual_seed(seed + 1)
    truth = right_share()
    log_odds = -math.log(truth / (1 - truth))
    tail = float(SHARES @ norm.sf(3.0 - MEANS[:, 0]))
    tail_odds = -math.log(tail / (1 - tail))
    edges = np.linspace(-4, 4, 25)
    cells = np.diff(norm.cdf(edges[:, None] - MEANS[:, 0]), axis=0)
    density = -np.log(cells @ SHARES / np.diff(edges))
    grid = np.linspace(-4.5, 4.5, 10)
    along = [np.diff(norm.cdf(grid[:, None] - MEANS[:, k]), axis=0) for k in (0, 1)]
    plane = -np.log(np.einsum("ik,jk,k->ij", along[0], along[1], SHARES) / (grid[1] - grid[0]) ** 2)
    u_mean = mixture_moments(1.0)[1]
    hot_log_z, hot_u, hot_x, *_ = mixture_moments(TEMPERATURE_RATIO)
    kelvin = TEMPERATURE_RATIO / fe.temperature.GAS_CONSTANT
    centres = np.array([[-2.0, 0.0], [2.0, 1.0]])
    share_of_cluster = cluster_share(centres)
    counts: Counts = {}
    for _ in range(repetitions):
        ens, end = one.sample(n), two.sample(n)
        for interval in ("delta", "bootstrap"):
            options = {"interval": interval, "replicates": 300}
            tally(counts, f"log Z, {interval}", fe.log_z(ens, **options), 0.0)
            tally(counts, f"<x>, {interval}", fe.expectation(ens, first, **options), float(SHARES @ MEANS[:, 0]))
            basin = fe.free_energy_of(ens, is_right(ens.positions), **options)
            tally(counts, f"ΔF of a basin of {truth:.0%}, {interval}", basin, log_odds)
        tally(counts, "P of a region", fe.expectation(ens, is_right), truth)
        rare = fe.free_energy_of(ens, first(ens.positions) > 3.0)
        tally(counts, f"ΔF of a basin of {tail:.1%}", rare, tail_odds)
        labels = np.square(ens.positions[:, 0, None, :] - centres).sum(-1).argmin(1)
        tally(counts, "population of a cluster", fe.populations(ens, labels)["1"], share_of_cluster)
        line = fe.profile(ens, first, bins=24, range=(-4.0, 4.0))
        count_profile(counts, "profile, 24 cells", line, density, n)
        flat = fe.profile(ens, first, second, bins=9, range=[(-4.5, 4.5), (-4.5, 4.5)])
        count_profile(counts, "profile, 9 x 9 cells", flat, plane, n)
        tally(counts, "ΔF one-sided", fe.perturb(ens, two.potential), delta)
        tally(counts, "ΔF by BAR, two generators", fe.bar(ens, end, one.potential, two.potential), delta)
        reference = exact(one.potential, 300, one.rng)
        tally(counts, "log Z by BAR, generator and reference", fe.bar_log_z(one, ens, reference), 0.0)
        hot = fe.at_temperature(ens, kelvin).ensemble
        tally(counts, f"log Z at {TEMPERATURE_RATIO:g} T", hot.log_z, hot_log_z)
        tally(counts, f"<x> at {TEMPERATURE_RATIO:g} T", fe.expectation(hot, first), hot_x)
        parts = fe.decompose(ens)
        tally(counts, "energy U", parts.energy, u_mean)
        tally(counts, "entropy -TS", parts.minus_temperature_entropy, -u_mean)
        tally(counts, f"energy U at {TEMPERATURE_RATIO:g} T", fe.decompose(hot).energy, hot_u / TEMPERATURE_RATIO)
    yield counts


def basins(repetitions: int, seed: int) -> Iterator[Counts]:
    """The energy and the entropy of a basin against all else, at either temperature."""
    generator = mixture_generators()[0]
    generator.rng.manual_seed(seed + 5)
    kelvin = TEMPERATURE_RATIO / fe.temperature.GAS_CONSTANT
    truths = {}
    for ratio in (1.0, TEMPERATURE_RATIO):
        *_, u_change, odds = mixture_moments(ratio)
        truths[ratio] = u_change / ratio, odds
    counts: Counts = {}
    for _ in range(repetitions):
        ens = generator.sample(600)
        for ratio, at in ((1.0, ens), (TEMPERATURE_RATIO, fe.at_temperature(ens, kelvin).ensemble)):
            energy, odds = truths[ratio]
            parts = fe.decompose(at, is_right(at.positions))
            tally(counts, f"energy ΔU at {ratio:g} T", parts.energy, energy)
            tally(counts, f"entropy -TΔS at {ratio:g} T", parts.minus_temperature_entropy, odds - energy)
    yield counts


def multistate(repetitions: int, seed: int) -> Iterator[Counts]:
    """MBAR over two generators and a reference, with the densities of the generators as states."""
    one, two, delta = mixture_generators()
    one.rng.manual_seed(seed + 2)
    two.rng.manual_seed(seed + 3)
    counts: Counts = {}
    for _ in range(repetitions):
        ensembles = [one.sample(200), two.sample(200), exact(one.potential, 100, one.rng)]
        found = fe.mbar(ensembles, [one.potential, two.potential, one.potential], [one, two, None])
        tally(counts, "ΔF by MBAR, two generators and a reference", found.difference(0, 1), delta)
        tally(counts, "absolute F by MBAR", found.difference("q of state 0", 0), 0.0)
    yield counts


def many_well(repetitions: int, seed: int) -> Iterator[Counts]:
    """Four modes in four dimensions."""
    generator = many_well_generator()
    target = generator.potential
    generator.rng.manual_seed(seed + 4)
    left = target.well.left_population
    mean = quad(
        lambda x: x * math.exp(-float(target.well.energy(torch.tensor(x, dtype=torch.float64))) - target.well.log_z),
        -4,
        4,
        points=[-1.7, 0.0, 1.7],
        limit=200,
    )[0]
    counts: Counts = {}
    for _ in range(repetitions):
        ens = generator.sample(1000)
        tally(counts, "log Z", ens.log_z, target.log_z)
        tally(
            counts,
            "ΔF of a well",
            fe.free_energy_of(ens, first(ens.positions) < target.barrier),
            -math.log(left / (1 - left)),
        )
        tally(counts, "<x>", fe.expectation(ens, first), mean)
    yield counts


def harmonic(repetitions: int, seed: int) -> Iterator[Counts]:
    """A molecule, and estimates of expressions in its torsions."""
    generator, known = harmonic_generator(seed)
    counts: Counts = {}
    n = 600
    for block in blocks(repetitions, 100):
        whole = generator.sample(n * len(block))
        for ens in pieces(whole, n):
            tally(counts, "log Z", ens.log_z, known.log_z)
            angle = fe.expectation(ens, known.torsion)
            wrapped = (angle.value - known.centre + 180) % 360 - 180
            shift = wrapped - (angle.value - known.centre)
            tally(
                counts,
                "circular mean of a torsion",
                replace(angle, value=angle.value + shift, low=angle.low + shift, high=angle.high + shift),
                known.centre,
            )
            tally(counts, "ΔF of a region", ens.free_energy({"near": known.region})["near"], known.odds)
    yield counts


def harmonic_basins(repetitions: int, seed: int) -> Iterator[Counts]:
    """The free energy of one basin less that of another, by expressions that overlap."""
    generator, known = harmonic_generator(seed + 1)
    counts: Counts = {}
    for block in blocks(repetitions, 100):
        for ens in pieces(generator.sample(600 * len(block)), 600):
            tally(counts, "ΔF between two basins", fe.basin_difference(ens, known.region, known.far), known.difference)
    yield counts
