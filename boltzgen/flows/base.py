"""What flows start from: random numbers with a simple density."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Base"]


class Base(NamedTuple):
    """Random numbers of B configurations, the batch last.

    Attributes
    ----------
    torsions, stiff, hydrogen_torsions, hydrogen_stiff : (D, B) tensors
        Uniform angles, and normal variables.
    labels : (n_groups, B) int tensor
        The relabelling of each symmetric group.
    """

    torsions: Tensor
    stiff: Tensor
    hydrogen_torsions: Tensor
    hydrogen_stiff: Tensor
    labels: Tensor
