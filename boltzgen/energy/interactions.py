"""Terms given by an expression: what a custom force of OpenMM says, read but not yet evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boltzgen.energy.expressions import Expression

__all__ = ["BornModel", "BornStep", "CustomInteractions", "CustomPairs", "Geometry"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Geometry:
    """One variable of an expression.

    Attributes
    ----------
    variable : str
        Its name in the expression.
    kind : {"distance", "angle", "dihedral", "x", "y", "z"}
        nm or radians.
    particles : tuple of int
        Which of the particles of the interaction: two, three, four or one.
    """

    variable: str
    kind: str
    particles: tuple[int, ...]


@dataclass(frozen=True)
class CustomInteractions:
    """Interactions of a few atoms each that share one expression.

    Attributes
    ----------
    expression : Expression
        kJ/mol.
    geometry : tuple of Geometry
        Its variables.
    atoms : (n, k) array
        Particles of every interaction.
    parameters : mapping of str to (n,) array or float
        Everything else in the expression.
    """

    expression: Expression
    geometry: tuple[Geometry, ...]
    atoms: Ints
    parameters: Mapping[str, Floats | float]


@dataclass(frozen=True)
class CustomPairs:
    """One symmetric function of the distance r for all pairs of atoms.

    Attributes
    ----------
    expression : Expression
        kJ/mol, of r, of the parameters of both particles (with 1 and 2 after the name) and of constants.
    particles : mapping of str to (N,) array
        Parameters by particle.
    constants : mapping of str to float
        Global parameters.
    included : (N, N) bool array
        Pairs that interact; symmetric, false on the diagonal.
    """

    expression: Expression
    particles: Mapping[str, Floats]
    constants: Mapping[str, float]
    included: Bools


@dataclass(frozen=True)
class BornStep:
    """A computed value or an energy term of a `BornModel`.

    Attributes
    ----------
    name : str
        Of the computed value; empty for an energy.
    expression : Expression
        Of one particle (its parameters, earlier values, x, y, z) or of a pair (r, and everything with 1 and 2).
    pairs : (N, N) bool array or None
        Pairs over which to sum; None for a function of one particle.
    """

    name: str
    expression: Expression
    pairs: Bools | None


@dataclass(frozen=True)
class BornModel:
    """A generalized Born energy, as OpenMM's CustomGBForce describes it.

    Attributes
    ----------
    particles : mapping of str to (N,) array
        Parameters by particle.
    constants : mapping of str to float
        Global parameters.
    values : tuple of BornStep
        Computed values by particle, in order; the first may be a sum over pairs.
    energies : tuple of BornStep
        Terms of the energy; those over pairs are symmetric.
    """

    particles: Mapping[str, Floats]
    constants: Mapping[str, float]
    values: tuple[BornStep, ...]
    energies: tuple[BornStep, ...]
