"""Where the inputs and variables of each group of hydrogens stand in padded arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.flows.hydrogen_groups import HydrogenGroup
from boltzgen.flows.networks import angle_rows

__all__ = ["HydrogenLayout", "Level"]


@dataclass(frozen=True)
class Level:
    """Groups that are drawn together.

    Attributes
    ----------
    groups, inputs : (n,) and (n, n_inputs) int tensors
        Numbers of the groups, and rows of the table that they see.
    turning, torsion_inputs, torsions : (m,), (m, n_torsion_inputs) and (m,) int tensors
        Of those with a torsion: place among all groups with one, rows that it sees, number of the torsion.
    """

    groups: Tensor
    inputs: Tensor
    turning: Tensor
    torsion_inputs: Tensor
    torsions: Tensor


class HydrogenLayout(nn.Module):
    """Index arrays of `LocalHydrogens`.

    Everything that a group may see stands in one table (n_rows, B): what is given of the heavy atoms, features of the
    hydrogen torsions, stiff hydrogen coordinates, and a row of zeros for padding. Stiff coordinates of the groups are
    padded to equal width; those of one group take turns between the two halves, which the couplings exchange.

    Parameters
    ----------
    As of `LocalHydrogens`.
    """

    inputs: Tensor
    torsion_inputs: Tensor
    torsions: Tensor
    regression: Tensor
    factor: Tensor
    present: Tensor
    present_parameters: Tensor
    row_sum: Tensor
    columns: Tensor
    entries: Tensor
    _folds: Tensor
    _slots: Tensor
    _from_flat: Tensor

    def __init__(
        self,
        groups: Sequence[HydrogenGroup],
        folds: Tensor,
        n_stiff: int,
        n_context: int,
        n_heavy: tuple[int, int],
        n_harmonics: int,
        around: Mapping[int, range],
    ) -> None:
        super().__init__()
        self.groups, self.n_harmonics = tuple(groups), n_harmonics
        self.width = max((len(group.stiff) for group in groups), default=0)
        self.n_first = (self.width + 1) // 2
        self.n_torsions, self.n_stiff = len(folds), n_stiff
        self._n_context, self._n_heavy = n_context, n_heavy
        self._around = around
        self._around_start = n_context + 2 * n_harmonics * n_heavy[0] + n_heavy[1]
        self._torsion_start = self._around_start + sum(map(len, around.values()))
        self._stiff_start = self._torsion_start + 2 * n_harmonics * len(folds)
        seen = [self._seen(group) for group in groups]
        self.n_seen = [len(rows) for rows in seen]
        longest = max(self.n_seen, default=0)
        own = [self._torsion_rows(group.torsion) for group in groups]
        padded = [rows + [self._zero] * (longest - len(rows)) + mine for rows, mine in zip(seen, own, strict=True)]
        turning = [g for g, group in enumerate(groups) if group.torsion is not None]
        buffer = lambda name, value: self.register_buffer(name, value, persistent=False)
        index = lambda rows, *shape: torch.tensor(rows, dtype=torch.long).reshape(*shape)
        buffer("_folds", folds.unsqueeze(1))
        buffer("inputs", index(padded, len(groups), longest + 2 * n_harmonics))
        widest = max((self.n_seen[g] for g in turning), default=0)
        buffer("torsion_inputs", index([padded[g][:widest] for g in turning], len(turning), widest))
        buffer("torsions", index([groups[g].torsion for g in turning], len(turning)))
        self._register_slots()
        self._register_harmonic(seen)
        self._register_levels(turning)

    @property
    def _zero(self) -> int:
        return self._stiff_start + self.n_stiff

    def _torsion_rows(self, torsion: int | None, start: int | None = None, of: int | None = None) -> list[int]:
        """Rows with the features of a torsion; of a hydrogen torsion unless said otherwise."""
        n = self.n_harmonics
        if torsion is None:
            return [self._zero] * (2 * n)
        start, of = (self._torsion_start, self.n_torsions) if start is None or of is None else (start, of)
        return [start + half * n * of + torsion * n + k for half in (0, 1) for k in range(n)]

    def _seen(self, group: HydrogenGroup) -> list[int]:
        """Rows that a group sees; its stiff ones in the order of its regression."""
        n_torsions = self._n_heavy[0]
        rows = list(range(self._n_context))
        for torsion in group.near_torsions:
            rows += self._torsion_rows(torsion, self._n_context, n_torsions)
        rows += [self._n_context + 2 * self.n_harmonics * n_torsions + k for k in group.near_stiff]
        rows += [self._around_start + k for k in self._around.get(group.parent, ())]
        for other in (self.groups[k] for k in group.earlier):
            rows += [self._stiff_start + k for k in other.stiff]
            rows += self._torsion_rows(other.torsion) if other.torsion is not None else []
        return rows

    def _register_slots(self) -> None:
        """Slots of each group: first, third, ... coordinate in the first half, the others in the second."""
        place = [k // 2 + (k % 2) * self.n_first for k in range(self.width)]
        slots, from_flat = torch.zeros(self.n_stiff, dtype=torch.long), list[int]()
        for g, group in enumerate(self.groups):
            row = [self.n_stiff] * self.width
            for k, number in enumerate(group.stiff):
                row[place[k]] = number
                slots[number] = g * self.width + place[k]
            from_flat += row
        self._place = place
        rows, columns = torch.tril_indices(self.width, self.width, -1)
        numbers = torch.tensor(from_flat, dtype=torch.long)
        present = (numbers < self.n_stiff).reshape(len(self.groups), self.width, 1).to(torch.get_default_dtype())
        row_sum = (rows == torch.arange(self.width).unsqueeze(1)).to(present.dtype)
        self.register_buffer("_slots", slots, persistent=False)
        self.register_buffer("_from_flat", numbers, persistent=False)
        self.register_buffer("present", present, persistent=False)
        both = present[:, rows] * present[:, columns]
        self.register_buffer("present_parameters", torch.cat([present, present, both], dim=1), persistent=False)
        self.register_buffer("row_sum", row_sum, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        entries = torch.zeros(self.width, self.width, dtype=torch.long)
        entries[rows, columns] = torch.arange(len(rows))
        self.register_buffer("entries", entries, persistent=False)

    def _register_harmonic(self, seen: list[list[int]]) -> None:
        """Regression and factors of the groups in padded arrays; saved, for machines may round them differently."""
        n, width = len(self.groups), self.width
        regression, factor = np.zeros((n, width, self.inputs.shape[1])), np.tile(np.eye(width), (n, 1, 1))
        first_stiff = self._n_context + 2 * self.n_harmonics * self._n_heavy[0]
        for g, group in enumerate(self.groups):
            slots = self._place[: len(group.stiff)]
            stiff = [
                k
                for k, row in enumerate(seen[g])
                if first_stiff <= row < self._around_start or self._stiff_start <= row < self._zero
            ]
            regression[np.ix_([g], slots, stiff)] = group.regression
            factor[np.ix_([g], slots, slots)] = group.covariance
        tensor = lambda array: torch.tensor(array, dtype=torch.get_default_dtype())
        self.register_buffer("regression", tensor(regression))
        self.register_buffer("factor", tensor(np.linalg.cholesky(factor)))

    def _register_levels(self, turning: list[int]) -> None:
        self._n_levels = max((group.level for group in self.groups), default=-1) + 1
        for level in range(self._n_levels):
            groups = [g for g, group in enumerate(self.groups) if group.level == level]
            among = [k for k, g in enumerate(turning) if self.groups[g].level == level]
            rows = [self._stiff_start + k for g in groups for k in self.groups[g].stiff]
            slots = [n * self.width + s for n, g in enumerate(groups) for s in self._place[: len(self.groups[g].stiff)]]
            for name, value in (("groups", groups), ("turning", among), ("rows", rows), ("slots", slots)):
                self.register_buffer(f"_{name}{level}", torch.tensor(value, dtype=torch.long), persistent=False)

    def log_factor(self) -> Tensor:
        """Log-determinant of the factors of all groups together."""
        return self.factor.diagonal(dim1=1, dim2=2).log().sum()

    def levels(self) -> list[Level]:
        """Levels, in the order in which they are drawn."""
        levels = []
        for k in range(self._n_levels):
            groups, turning = getattr(self, f"_groups{k}"), getattr(self, f"_turning{k}")
            levels.append(
                Level(groups, self.inputs[groups], turning, self.torsion_inputs[turning], self.torsions[turning])
            )
        return levels

    def table(self, heavy: Tensor, torsions: Tensor, stiff: Tensor) -> Tensor:
        """Everything that may be seen, (n_rows, B)."""
        features = angle_rows(torsions / self._folds, self.n_harmonics)
        return torch.cat([heavy, features, stiff, heavy.new_zeros(1, heavy.shape[1])])

    def with_torsions(self, table: Tensor, numbers: Tensor, torsions: Tensor) -> Tensor:
        """The table with the features of some hydrogen torsions (m, B)."""
        features = angle_rows(torsions / self._folds[numbers], self.n_harmonics)
        harmonics = torch.arange(self.n_harmonics, device=numbers.device)
        sines = (self._torsion_start + numbers.unsqueeze(1) * self.n_harmonics + harmonics).flatten()
        return table.index_copy(0, torch.cat([sines, sines + self.n_harmonics * self.n_torsions]), features)

    def with_stiff(self, table: Tensor, level: int, values: Tensor) -> Tensor:
        """The table with the padded stiff coordinates (n, width, B) of the groups of a level."""
        rows, slots = getattr(self, f"_rows{level}"), getattr(self, f"_slots{level}")
        return table.index_copy(0, rows, values.flatten(0, 1)[slots])

    def padded(self, flat: Tensor) -> Tensor:
        """(n_stiff, B) to (G, width, B), zero where a group has fewer."""
        extended = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
        return extended[self._from_flat].unflatten(0, (len(self.groups), self.width))

    def flat(self, padded: Tensor) -> Tensor:
        """Inverse of `padded`."""
        return padded.flatten(0, 1)[self._slots]
