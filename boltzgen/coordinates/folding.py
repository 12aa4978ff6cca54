"""Symmetric groups on a fundamental interval: random relabelling, representatives, and the torsions in between."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boltzgen.coordinates.internal import dihedral_angle
from boltzgen.coordinates.symmetry import SymmetryGroup

__all__ = ["Folding"]


class Folding(nn.Module):
    """Labels of symmetric groups, exactly.

    The angle of a group of order m is the mean direction of its branches' torsions, each turned back by its place in
    the group, ``arg sum_k exp i(t_k - 2 pi k / m)``. Relabelling adds 2 pi / m to it, whatever the shape of the group,
    so exactly one of the m relabellings of a configuration has it in a given interval of that length. The
    configuration with all groups in their intervals is the representative; a density on representatives, divided by
    the orders of the groups, is a density on all configurations.

    Parameters
    ----------
    groups : sequence of SymmetryGroup
        Outer groups first: the angle of a group must not change when groups after it are relabelled.
    n_atoms : int
    """

    _torsions: Tensor
    _siblings: Tensor
    _turns: Tensor
    _present: Tensor
    _orders: Tensor
    _centres: Tensor

    def __init__(self, groups: Sequence[SymmetryGroup], n_atoms: int) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.log_order = sum(math.log(group.order) for group in groups)
        buffer = lambda name, values, dtype: self.register_buffer(
            name, torch.tensor(values, dtype=dtype), persistent=False
        )
        buffer("_torsions", [group.torsion for group in groups], torch.long)
        # A group of two has one sibling; its second column is absent.
        buffer("_siblings", [(*group.siblings, 0)[:2] for group in groups], torch.long)
        buffer("_present", [(1.0, float(group.order == 3)) for group in groups], torch.get_default_dtype())
        buffer("_turns", [(1 / group.order, 2 / group.order) for group in groups], torch.get_default_dtype())
        buffer("_orders", [float(group.order) for group in groups], torch.get_default_dtype())
        buffer("_centres", [group.centre for group in groups], torch.get_default_dtype())
        for k, group in enumerate(groups):
            powers = [torch.arange(n_atoms)]
            for _ in range(group.order - 1):
                powers.append(powers[-1][torch.tensor(group.permutation)])
            self.register_buffer(f"_powers{k}", torch.stack(powers), persistent=False)
            self.register_buffer(f"_atoms{k}", torch.tensor([*group.members, *group.axis]), persistent=False)

    def torsions(self, coordinates: Tensor) -> Tensor:
        """Internal coordinates (B, 3N-6) with the group variables, in [-pi, pi), replaced by torsions."""
        if not self.groups:
            return coordinates
        angle = self._centres + coordinates[:, self._torsions] / self._orders
        return coordinates.index_copy(1, self._torsions, angle - self._offset(coordinates))

    def variables(self, coordinates: Tensor) -> Tensor:
        """Inverse of `torsions` for a representative: order times the deviation of the group angle, on the circle."""
        if not self.groups:
            return coordinates
        deviation = coordinates[:, self._torsions] + self._offset(coordinates) - self._centres
        wrapped = self._orders * _wrap(deviation)
        return coordinates.index_copy(1, self._torsions, _wrap(wrapped))

    def draw(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """A relabelling of each group for each configuration, (n_groups, B) int64, drawn at random."""
        device, n = self._torsions.device, (n_samples,)
        drawn = [torch.randint(group.order, n, device=device, generator=generator) for group in reversed(self.groups)]
        return torch.stack(drawn[::-1]) if drawn else torch.empty(0, n_samples, dtype=torch.long, device=device)

    def relabel(self, positions: Tensor, powers: Tensor) -> Tensor:
        """Positions (B, N, 3) under the relabellings (n_groups, B) of `draw`; inner groups first."""
        labels = self._labels(positions)
        for k in reversed(range(len(self.groups))):
            labels = labels.gather(1, getattr(self, f"_powers{k}")[powers[k]])
        return _take(positions, labels) if self.groups else positions

    def representative(self, positions: Tensor) -> Tensor:
        """The relabelling of each configuration (B, N, 3) that has all group angles in their intervals."""
        return _take(positions, self.representative_labels(positions)) if self.groups else positions

    def representative_labels(self, positions: Tensor) -> Tensor:
        """Which atom of each configuration (B, N, 3) stands where in its representative, (B, N) int64."""
        labels = self._labels(positions)
        for k, group in enumerate(self.groups):
            turns = (self.angle(k, positions, labels) - group.centre) * (group.order / (2 * math.pi))
            power = torch.remainder(-torch.round(turns.nan_to_num()), group.order).long()
            labels = labels.gather(1, getattr(self, f"_powers{k}")[power])
        return labels

    def angle(self, k: int, positions: Tensor, labels: Tensor | None = None) -> Tensor:
        """Angle (B,) of the k-th group, rad, of positions (B, N, 3) or of a relabelling of them."""
        with torch.no_grad():
            atoms: Tensor = getattr(self, f"_atoms{k}")
            points = positions[:, atoms] if labels is None else _take(positions, labels[:, atoms])
            order = self.groups[k].order
            b, a, c = (points[:, i : i + 1] for i in range(order, order + 3))
            torsions = dihedral_angle(points[:, :order], b, a, c)
            steps = torch.arange(order, device=positions.device, dtype=positions.dtype)
            turned = torsions - steps * (2 * math.pi / order)
            return torch.atan2(turned.sin().sum(1), turned.cos().sum(1))

    def _labels(self, positions: Tensor) -> Tensor:
        return torch.arange(positions.shape[1], device=positions.device).expand(len(positions), -1)

    def _offset(self, coordinates: Tensor) -> Tensor:
        """Group angle less the torsion of the first branch, (B, n_groups): a function of the improper torsions."""
        turned = coordinates[:, self._siblings] - 2 * math.pi * self._turns
        sine = (self._present * turned.sin()).sum(-1)
        return torch.atan2(sine, 1 + (self._present * turned.cos()).sum(-1))


def _take(positions: Tensor, labels: Tensor) -> Tensor:
    """Atoms (B, n, 3) of positions (B, N, 3) by the labels (B, n)."""
    return positions.gather(1, labels.unsqueeze(-1).expand(-1, -1, 3))


def _wrap(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
