"""Generalized Born energies, as OpenMM's CustomGBForce describes them, as batched torch operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from boltzgen.energy.custom import pair_distances
from boltzgen.energy.expressions import ExpressionProgram
from boltzgen.energy.interactions import BornModel, BornStep

__all__ = ["BornTerms"]

_COORDINATES = ("x", "y", "z")


class BornTerms(nn.Module):
    """A `BornModel` as a function of (3, N, B) coordinates, over the full N x N square of pairs.

    Every sum by atom is then a sum along a row, which a compiler fuses with what is summed.

    Parameters
    ----------
    model : BornModel
        What to evaluate.
    """

    def __init__(self, model: BornModel) -> None:
        super().__init__()
        names = [step.name for step in model.values]
        self._values = _Steps([_Step(step, model, names[:k]) for k, step in enumerate(model.values)])
        self._energies = _Steps([_Step(step, model, names) for step in model.energies])

    def by_atom(self, x: Tensor) -> Tensor:
        """Energy of every atom, (N, B) in kJ/mol, each pair's energy halved between its two."""
        _, r = pair_distances(x)
        state: dict[str, Tensor] = {"r": r, **dict(zip(_COORDINATES, x, strict=True))}
        for step in self._values:
            state[step.name] = step(state, False).total
        energy = torch.zeros_like(x[0])
        for step in self._energies:
            energy = energy + (0.5 if step.pairwise else 1.0) * step(state, False).total
        return energy

    def forward(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Energy (B,) in kJ/mol and gradient (3, N, B) in kJ/mol/nm of (3, N, B) coordinates in nm."""
        if not gradient:
            return self.by_atom(x).sum(0), None
        d, r = pair_distances(x)
        state: dict[str, Tensor] = {"r": r, **dict(zip(_COORDINATES, x, strict=True))}
        records: list[tuple[_Step, _Record]] = []
        for step in self._values:
            record = step(state, True)
            state[step.name] = record.total
            records.append((step, record))
        energy = x.new_zeros(x.shape[2])
        adjoint = _Adjoint(x)
        for step in self._energies:
            record = step(state, True)
            # A pair stands in the square twice.
            energy = energy + (0.5 if step.pairwise else 1.0) * record.total.sum(0)
            adjoint.add_energy(step, record)
        for step, record in reversed(records):
            adjoint.add_value(step, record)
        return energy, adjoint.gradient(d, r)


class _Record:
    """Result of a step: its value by atom, and its slopes by variable, by atom or by pair."""

    def __init__(self, total: Tensor, slopes: dict[str, Tensor]) -> None:
        self.total, self.slopes = total, slopes


class _Step(nn.Module):
    """One computed value or energy term: its program, which variables it takes, and over which pairs it goes."""

    pairs: Tensor

    def __init__(self, step: BornStep, model: BornModel, earlier: list[str]) -> None:
        super().__init__()
        self.name, self.pairwise = step.name, step.pairs is not None
        if step.pairs is not None:
            candidates = ["r", *(f"{name}{k}" for name in earlier for k in (1, 2))]
            shapes: dict[str, Any] = {"1": (slice(None), None, None), "2": (None, slice(None), None)}
            self.register_buffer("pairs", torch.from_numpy(step.pairs[:, :, None]), persistent=False)
        else:
            candidates = [*_COORDINATES, *earlier]
            shapes = {"": (slice(None), None)}
        constants = {f"{name}{k}": v[at] for name, v in model.particles.items() for k, at in shapes.items()}
        self.variables = [name for name in candidates if name in step.expression.variables]
        # Of a symmetric energy the slopes along the values of the first particle are enough.
        wanted = [name for name in self.variables if not (self.pairwise and name.endswith("2"))]
        self.wanted = wanted
        self.program = ExpressionProgram(step.expression, self.variables, {**constants, **model.constants}, wanted)

    def forward(self, state: dict[str, Tensor], gradient: bool) -> _Record:
        arguments = [self._argument(state, name) for name in self.variables]
        like = state["r"] if self.pairwise else state["x"]
        if not gradient:
            return _Record(self._sum(self.program.value(*arguments).expand_as(like)), {})
        value, slopes = self.program(*arguments)
        slopes = [self._masked(slope.expand_as(like)) for slope in slopes]
        return _Record(self._sum(value.expand_as(like)), dict(zip(self.wanted, slopes, strict=True)))

    def _argument(self, state: dict[str, Tensor], name: str) -> Tensor:
        if not self.pairwise or name == "r":
            return state[name]
        return state[name[:-1]].unsqueeze(1 if name.endswith("1") else 0)

    def _masked(self, value: Tensor) -> Tensor:
        return torch.where(self.pairs, value, torch.zeros_like(value)) if self.pairwise else value

    def _sum(self, value: Tensor) -> Tensor:
        return self._masked(value).sum(1) if self.pairwise else value


class _Steps(nn.ModuleList):
    """A list of steps that type checkers know as such."""

    def __iter__(self) -> Iterator[_Step]:
        return super().__iter__()  # type: ignore[return-value]


class _Adjoint:
    """Derivatives of the energy with respect to values, distances and coordinates, gathered backwards."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._values: dict[str, Tensor] = {}
        self._coordinates: dict[str, Tensor] = {}
        self._radial: Tensor | None = None

    def add_energy(self, step: _Step, record: _Record) -> None:
        for name, slope in record.slopes.items():
            if name == "r":
                # Both places of a pair in the square give half of it each to the pair, and so the whole to each atom.
                self._add_radial(slope)
            elif step.pairwise:
                self._add_value(name[:-1], slope.sum(1))
            else:
                self._add_single(name, slope)

    def add_value(self, step: _Step, record: _Record) -> None:
        seed = self._values.get(step.name)
        if seed is None:
            return
        for name, slope in record.slopes.items():
            if name == "r":
                product = slope * seed[:, None, :]
                self._add_radial(product + product.transpose(0, 1))
            else:
                self._add_single(name, slope * seed)

    def gradient(self, d: Tensor, r: Tensor) -> Tensor:
        total = torch.zeros_like(self._x)
        if self._radial is not None:
            force = self._radial / r
            total = torch.stack([(force * d[k]).sum(1) for k in range(3)])
        if self._coordinates:
            zero = torch.zeros_like(self._x[0])
            total = total + torch.stack([self._coordinates.get(name, zero) for name in _COORDINATES])
        return total

    def _add_single(self, name: str, slope: Tensor) -> None:
        if name in _COORDINATES:
            self._coordinates[name] = self._coordinates[name] + slope if name in self._coordinates else slope
        else:
            self._add_value(name, slope)

    def _add_value(self, name: str, slope: Tensor) -> None:
        self._values[name] = self._values[name] + slope if name in self._values else slope

    def _add_radial(self, slope: Tensor) -> None:
        self._radial = slope if self._radial is None else self._radial + slope
