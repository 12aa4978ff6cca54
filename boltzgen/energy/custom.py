"""Terms given by an expression as batched torch operations: a few atoms each, or all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.energy.expressions import ExpressionProgram
from boltzgen.energy.geometry import angle, angle_gradient, dihedral, dihedral_gradient
from boltzgen.energy.interactions import CustomInteractions, CustomPairs, Geometry
from boltzgen.energy.pairs import squared_distances

__all__ = ["CustomBonded", "CustomPairTerms", "pair_distances"]

_AXES = {"x": 0, "y": 1, "z": 2}


class CustomBonded(nn.Module):
    """Interactions of a few atoms each that share one expression, as a function of (3, N, B) coordinates.

    Parameters
    ----------
    terms : CustomInteractions
        What to evaluate.
    n_atoms : int
        Number of atoms N. A coordinate x, y or z counts as a difference from a point that stands for the origin, N.
    """

    head: Tensor
    tail: Tensor

    def __init__(self, terms: CustomInteractions, n_atoms: int) -> None:
        super().__init__()
        self.text = terms.expression.text
        self.atoms = terms.atoms
        self.n_terms = len(terms.atoms)
        self.geometry = terms.geometry
        names = [g.variable for g in terms.geometry]
        constants = {name: np.reshape(value, (-1, 1)) for name, value in terms.parameters.items()}
        self.program = ExpressionProgram(terms.expression, names, constants, derivatives=names)
        ends = [_ends(g, terms.atoms, n_atoms) for g in terms.geometry]
        head, tail = np.concatenate([pair for pairs in ends for pair in pairs] or [np.zeros((0, 2), np.int64)]).T
        self.register_buffer("head", torch.from_numpy(head.copy()), persistent=False)
        self.register_buffer("tail", torch.from_numpy(tail.copy()), persistent=False)
        self.vectors = [len(pairs) for pairs in ends]
        self.absolute = any(g.kind in _AXES for g in terms.geometry)

    def forward(self, x: Tensor, gradient: bool) -> tuple[Tensor, list[Tensor]]:
        """Energy (B,) in kJ/mol and its gradient by difference vector, as `BondedTerms` gives it."""
        variables, measures = self._measure(x)
        if not gradient:
            return self._of_each(self.program.value(*variables), x).sum(0), []
        energy, slopes = self.program(*variables)
        gradients: list[Tensor] = []
        for measure, slope in zip(measures, slopes, strict=True):
            gradients.extend(measure.pull_back(slope))
        return self._of_each(energy, x).sum(0), gradients

    def interactions(self, x: Tensor) -> Tensor:
        """Energy of every interaction, (n, B) in kJ/mol."""
        return self._of_each(self.program.value(*self._measure(x)[0]), x)

    def _of_each(self, energy: Tensor, x: Tensor) -> Tensor:
        """One energy for every interaction and sample, also where the expression depends on neither."""
        return energy.expand(self.n_terms, x.shape[2])

    def _measure(self, x: Tensor) -> tuple[list[Tensor], list[_Measure]]:
        if self.absolute:
            x = torch.cat((x, torch.zeros_like(x[:, :1])), dim=1)
        d = x.index_select(1, self.head) - x.index_select(1, self.tail)
        parts = list(torch.split(d, self.n_terms, dim=1)) if self.n_terms else []
        measures = []
        for geometry, count in zip(self.geometry, self.vectors, strict=True):
            measures.append(_Measure(geometry.kind, parts[:count]))
            parts = parts[count:]
        return [measure.value for measure in measures], measures


class _Measure:
    """A distance, angle, dihedral or coordinate and what is needed for its gradient.

    Parameters
    ----------
    kind : str
        As in `Geometry`.
    vectors : list of (3, n, B) tensors
        The difference vectors it is made of.
    """

    def __init__(self, kind: str, vectors: Sequence[Tensor]) -> None:
        self.kind, self.vectors = kind, vectors
        if kind == "distance":
            self.value = torch.sqrt(squared_distances(vectors[0]))
        elif kind == "angle":
            self.value, self._normal, self._length = angle(*vectors)
        elif kind == "dihedral":
            cosine, sine, *self._for_gradient = dihedral(*vectors)
            self.value = torch.atan2(sine, cosine)
        else:
            self.value = vectors[0][_AXES[kind]]

    def pull_back(self, slope: Tensor) -> list[Tensor]:
        """Gradients with respect to the vectors, given the slope of the energy along the value, (n, B)."""
        if self.kind == "distance":
            return [self.vectors[0] * (slope / self.value)]
        if self.kind == "angle":
            u, v = self.vectors
            return list(angle_gradient(u, v, self._normal, self._length, slope))
        if self.kind == "dihedral":
            b1, b2, b3 = self.vectors
            m, n, length = self._for_gradient
            return list(dihedral_gradient(b1, b2, b3, m, n, length, slope))
        axis = _AXES[self.kind]
        zero = torch.zeros_like(slope)
        return [torch.stack([slope if k == axis else zero for k in range(3)])]


def _ends(geometry: Geometry, atoms: np.ndarray, origin: int) -> list[np.ndarray]:
    """Head and tail, (n, 2), of each difference vector of a variable."""
    columns = [atoms[:, p] for p in geometry.particles]
    if geometry.kind in _AXES:
        return [np.stack((columns[0], np.full(len(atoms), origin)), axis=1)]
    order = {"distance": [(1, 0)], "angle": [(0, 1), (2, 1)], "dihedral": [(1, 0), (2, 1), (3, 2)]}
    return [np.stack((columns[head], columns[tail]), axis=1) for head, tail in order[geometry.kind]]


class CustomPairTerms(nn.Module):
    """One function of the distance for all pairs of atoms; layouts as in `PairTerms`.

    Parameters
    ----------
    terms : CustomPairs
        What to evaluate.
    """

    first: Tensor
    second: Tensor
    included: Tensor

    def __init__(self, terms: CustomPairs) -> None:
        super().__init__()
        self.text = terms.expression.text
        first, second = np.nonzero(np.triu(terms.included))
        self.register_buffer("first", torch.from_numpy(first), persistent=False)
        self.register_buffer("second", torch.from_numpy(second), persistent=False)
        self.register_buffer("included", torch.from_numpy(terms.included[:, :, None]), persistent=False)
        one = {f"{name}1": value[first][:, None] for name, value in terms.particles.items()}
        two = {f"{name}2": value[second][:, None] for name, value in terms.particles.items()}
        self.listed = ExpressionProgram(terms.expression, ("r",), {**one, **two, **terms.constants})
        one = {f"{name}1": value[:, None, None] for name, value in terms.particles.items()}
        two = {f"{name}2": value[None, :, None] for name, value in terms.particles.items()}
        self.square = ExpressionProgram(terms.expression, ("r",), {**one, **two, **terms.constants}, ("r",))

    def interactions(self, x: Tensor) -> Tensor:
        """Energy of every pair, (n, B) in kJ/mol."""
        d = x.index_select(1, self.first) - x.index_select(1, self.second)
        value: Tensor = self.listed.value(torch.sqrt(squared_distances(d)))
        return value

    def forward(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Energy (B,) in kJ/mol and gradient (3, N, B) in kJ/mol/nm of (3, N, B) coordinates in nm."""
        if not gradient:
            return self.interactions(x).sum(0), None
        d, r = pair_distances(x)
        energy, slope = self.radial(r)
        slope = slope / r
        return 0.5 * energy.sum(1).sum(0), torch.stack([(slope * d[k]).sum(1) for k in range(3)])

    def radial(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """As `PairTerms.radial`."""
        energy, (slope,) = self.square(r)
        zero = torch.zeros_like(energy)
        return torch.where(self.included, energy, zero), torch.where(self.included, slope, zero)


def pair_distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences (3, N, N, B) and distances (N, N, B) between all atoms; an atom is 1 nm from itself."""
    d = x[:, :, None, :] - x[:, None, :, :]
    itself = torch.eye(x.shape[1], device=x.device, dtype=torch.bool)[:, :, None]
    r2 = squared_distances(d)
    return d, torch.sqrt(torch.where(itself, torch.ones_like(r2), r2))
