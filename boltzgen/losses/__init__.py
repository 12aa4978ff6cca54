"""Losses: all of ``(log_p, log_q)``, registered by name with what each needs of its samples.

``log_p`` is the log of the target density up to a constant (``-U/kT``), ``log_q`` the log-density of the generator at
the same samples, both of shape (B,) and dimensionless. Samples with no finite ``log_p`` are left out, and counted, by
the caller. A dagger marks what is detached, as in the paper.
"""

from boltzgen.losses.controlled import ControlledForwardKL
from boltzgen.losses.divergences import (
    estimator_variance,
    forward_kl,
    minibatch_kl,
    path_log_prob,
    renyi_2,
    reverse_kl,
    weighted_forward_kl,
)
from boltzgen.losses.log_ratios import (
    TrajectoryBalance,
    log_variance,
    masked_log_variance,
    masked_log_variance_attached,
    vargrad,
)
from boltzgen.losses.registry import LOSSES, Loss, Objective, data_free_loss, find_loss

__all__ = [
    "LOSSES",
    "ControlledForwardKL",
    "Loss",
    "Objective",
    "TrajectoryBalance",
    "data_free_loss",
    "estimator_variance",
    "find_loss",
    "forward_kl",
    "log_variance",
    "masked_log_variance",
    "masked_log_variance_attached",
    "minibatch_kl",
    "path_log_prob",
    "renyi_2",
    "reverse_kl",
    "vargrad",
    "weighted_forward_kl",
]
