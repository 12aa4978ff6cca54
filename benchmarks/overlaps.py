"""Does a generator reach what a reference has: coverage by basin, and forward ESS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boltzgen.diagnostics import coverage, forward_ess_fraction
from boltzgen.free_energy.acceptance_ratio import log_z_bar
from boltzgen.generator import BoltzmannGenerator

__all__ = ["overlaps"]

WORST = 0.001  # of the weight of the reference


def overlaps(
    generator: BoltzmannGenerator,
    positions: np.ndarray,
    weights: np.ndarray,
    generated_log_weights: np.ndarray,
    basins: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Coverage of each basin, forward ESS, and the share of the reference outside the generator's domain.

    The forward ESS is that of the frames within the domain, since one outside would make it zero; and a second time
    without the frames of highest p/q that hold 0.1 % of the weight.

    Parameters
    ----------
    positions : (n, N, 3) array
        Reference frames, nm.
    weights : (n,) array
        Of these.
    generated_log_weights : array
        Of samples of the generator, for log Z by Bennett's acceptance ratio.
    basins : {name: (n,) bool array}
    """
    inside = generator.contains(positions)
    log_weights = generator.log_weights_of(positions, generator.energies(positions))
    log_z = log_z_bar(generated_log_weights, log_weights[inside], weights[inside])
    found = {f"coverage_{name}": coverage(log_z - log_weights, rows, weights).coverage for name, rows in basins.items()}
    order = np.argsort(log_weights[inside])
    known, shares = log_weights[inside][order], weights[inside][order]
    rest = np.cumsum(shares) <= (1 - WORST) * shares.sum()
    return found | {
        "forward_ess": forward_ess_fraction(known, shares, log_z),
        "forward_ess_without_worst": forward_ess_fraction(known[rest], shares[rest], log_z),
        "share_outside_domain": float(weights[~inside].sum() / weights.sum()),
    }
