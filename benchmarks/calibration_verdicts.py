"""Verdicts on good generators and on those that lack a mode, repeated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from calibration_targets import MEANS, SHARES, WIDE, MixtureFlow, many_well_generator, mixture_generators

from boltzgen.diagnostics import coverage, verdict
from boltzgen.energy import GaussianMixture
from boltzgen.free_energy.acceptance_ratio import log_z_bar
from boltzgen.generator import BoltzmannGenerator


def verdicts(repetitions: int, seed: int) -> Iterator[str]:
    """How often a good generator is usable, and one that lacks a mode is refused."""
    whole = mixture_generators()[0]
    target = whole.potential
    lost = {
        f"mixture without its mode of {SHARES[1 - kept]:.0%}": BoltzmannGenerator(
            MixtureFlow(GaussianMixture(MEANS[kept : kept + 1], WIDE)), target, kT=1.0
        )
        for kept in (0, 1)
    }
    wells = {
        f"many-well without its {side} wells": many_well_generator((kept,))
        for kept, side in ((0, "right"), (1, "left"))
    }
    # Twice too wide: each mode is covered to 0.57, which still holds.
    broad = BoltzmannGenerator(MixtureFlow(GaussianMixture(MEANS, 2.0, SHARES)), target, kT=1.0)
    cases = [("mixture", whole, "usable"), ("broad mixture", broad, "usable")]
    cases += [("many-well", many_well_generator(), "usable")]
    cases += [(name, generator, "do not use") for name, generator in (lost | wells).items()]
    for name, generator, wanted in cases:
        generator.rng.manual_seed(seed + 11)
        ess = generator.sample(200_000).ess_fraction
        barrier = getattr(generator.potential, "barrier", 0.0)
        found = [judge(generator, barrier) for _ in range(repetitions)]
        share = np.mean([one == wanted for one in found])
        yield f"{name:<44} {ess:8.2f}  {wanted:<12} {share:8.3f}"


def judge(generator: BoltzmannGenerator, barrier: float) -> str:
    """The verdict on 1,000 samples with 500 exact reference samples, by the two sides of the barrier."""
    ens = generator.sample(1000)
    x = generator.potential.sample(500, generator.rng)
    log_weights = generator.log_weights_of(x.numpy(), generator.potential(x).numpy())
    ones = np.ones(len(x))
    log_z = log_z_bar(ens.log_weights, log_weights, ones)
    left = x[:, 0, 0].numpy() < barrier
    sides = {"left": coverage(log_z - log_weights, left, ones), "right": coverage(log_z - log_weights, ~left, ones)}
    return verdict(ens.log_weights, coverages=sides).verdict
