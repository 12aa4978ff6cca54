"""Parameter tables of the force-field terms: what is left of a System once its forces are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from boltzgen.energy.interactions import BornModel, CustomInteractions, CustomPairs

__all__ = ["MAX_PERIODICITY", "TermTables", "cosine_polynomial", "merge"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Torsions are evaluated as polynomials in the cosine; their rounding error grows as 2.4**n.
MAX_PERIODICITY = 8


def _floats(*shape: int) -> Floats:
    return np.zeros(shape, dtype=np.float64)


def _ints(*shape: int) -> Ints:
    return np.zeros(shape, dtype=np.int64)


@dataclass
class TermTables:
    """Atoms and parameters of every kind of term (OpenMM units: nm, kJ/mol, radians, elementary charges).

    Attributes
    ----------
    bonds, bond_parameters : (n, 2) indices; k, r0
        k/2 (r - r0)^2; stretches and Urey-Bradley terms.
    pairs, pair_parameters : (n, 2) indices; c12, c6, qq
        c12/r^12 - c6/r^6 + qq/r, with the Coulomb constant in qq.
    angles, angle_parameters : (n, 3) indices; k, theta0
        k/2 (theta - theta0)^2.
    torsions, torsion_parameters : (n, 4) indices; polynomials P and Q, each MAX_PERIODICITY + 1 coefficients
        P(cos phi) + sin phi Q(cos phi).
    impropers, improper_parameters : (n, 4) indices; k, theta0
        k d^2 with d the difference between theta and theta0 on the circle.
    cmaps, cmap_index : (n, 8) indices; index of the map
        Natural bicubic spline in two dihedrals.
    cmap_energies : list of (size, size) arrays
        kJ/mol; first index along the first dihedral, grid from 0 to 2 pi.
    custom, custom_pairs, born : lists
        Terms given by expressions, see `interactions`.
    constant : float
        kJ/mol; a term without geometry.
    """

    bonds: Ints = field(default_factory=lambda: _ints(0, 2))
    bond_parameters: Floats = field(default_factory=lambda: _floats(0, 2))
    pairs: Ints = field(default_factory=lambda: _ints(0, 2))
    pair_parameters: Floats = field(default_factory=lambda: _floats(0, 3))
    angles: Ints = field(default_factory=lambda: _ints(0, 3))
    angle_parameters: Floats = field(default_factory=lambda: _floats(0, 2))
    torsions: Ints = field(default_factory=lambda: _ints(0, 4))
    torsion_parameters: Floats = field(default_factory=lambda: _floats(0, 2 * (MAX_PERIODICITY + 1)))
    impropers: Ints = field(default_factory=lambda: _ints(0, 4))
    improper_parameters: Floats = field(default_factory=lambda: _floats(0, 2))
    cmaps: Ints = field(default_factory=lambda: _ints(0, 8))
    cmap_index: Ints = field(default_factory=lambda: _ints(0))
    cmap_energies: list[Floats] = field(default_factory=list)
    custom: list[CustomInteractions] = field(default_factory=list)
    custom_pairs: list[CustomPairs] = field(default_factory=list)
    born: list[BornModel] = field(default_factory=list)
    constant: float = 0.0


def merge(tables: Iterable[TermTables]) -> TermTables:
    """One table of all terms; parameters of the same pair or the same torsion are added up."""
    tables = list(tables)
    merged = TermTables()
    for spec in fields(TermTables):
        if spec.name in ("cmap_index", "cmap_energies", "constant"):
            continue
        empty = getattr(merged, spec.name)
        values = [getattr(t, spec.name) for t in tables]
        if isinstance(empty, list):
            setattr(merged, spec.name, [entry for value in values for entry in value])
        else:
            setattr(merged, spec.name, np.concatenate([empty, *values]))
    merged.constant = sum(t.constant for t in tables)
    index: list[Ints] = [merged.cmap_index]
    for t in tables:
        index.append(t.cmap_index + len(merged.cmap_energies))
        merged.cmap_energies = merged.cmap_energies + t.cmap_energies
    merged.cmap_index = np.concatenate(index)
    merged.pairs, merged.pair_parameters = _sum_equal(np.sort(merged.pairs, axis=1), merged.pair_parameters)
    keep = np.any(merged.pair_parameters != 0, axis=1)
    merged.pairs, merged.pair_parameters = merged.pairs[keep], merged.pair_parameters[keep]
    # i-j-k-l and l-k-j-i are the same dihedral.
    reverse = merged.torsions[:, 0] > merged.torsions[:, 3]
    torsions = np.where(reverse[:, None], merged.torsions[:, ::-1], merged.torsions)
    merged.torsions, merged.torsion_parameters = _sum_equal(torsions, merged.torsion_parameters)
    return merged


def cosine_polynomial(periodicity: int, phase: float, k: float) -> Floats:
    """Coefficients of P and Q with k (1 + cos(n phi - phase)) = P(cos phi) + sin phi Q(cos phi).

    From cos(n phi) = T_n(cos phi) and sin(n phi) = sin phi U_{n-1}(cos phi), the Chebyshev polynomials.
    """
    first = np.polynomial.chebyshev.cheb2poly([0.0] * periodicity + [1.0])
    second = np.polynomial.polynomial.polyder(first) / max(periodicity, 1)  # U_{n-1} = T_n' / n
    row = _floats(2, MAX_PERIODICITY + 1)
    row[0, : periodicity + 1] = k * _exact(np.cos(phase)) * first
    row[0, 0] += k
    row[1, : len(second)] += k * _exact(np.sin(phase)) * second
    return row.reshape(-1)


def _exact(value: float) -> float:
    """Phases are 0 or 180 degrees as a rule, given with a few digits too few or too many."""
    return float(np.round(value)) if abs(value - np.round(value)) < 1e-15 else value


def _sum_equal(indices: Ints, parameters: Floats) -> tuple[Ints, Floats]:
    if len(indices) == 0:
        return indices, parameters
    unique, inverse = np.unique(indices, axis=0, return_inverse=True)
    total = _floats(len(unique), parameters.shape[1])
    np.add.at(total, inverse.reshape(-1), parameters)
    return unique, total
