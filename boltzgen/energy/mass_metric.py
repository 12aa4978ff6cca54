"""The mass-metric tensor: how constrained dynamics differs from the distribution on the constrained coordinates.

Dynamics with constraints sigma(x) = 0 has no momentum along them. Integrating the momenta that are left over gives
exp(-U/kT) sqrt(det Z) delta(sigma) dx for the positions, with Z = G M^-1 G^T, where G are the gradients of the
constraints and M the masses (Fixman 1974; Echenique, Cavasotto and Garcia-Risueno 2011). A generator's target is
exp(-U/kT) delta(r - r0) dx, without the square root, so frames of such dynamics count by 1 / sqrt(det Z).

With constrained distances Z depends on the angles between constrained bonds that share an atom, and on nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from boltzgen.energy.read import system_of
from boltzgen.errors import PotentialError

__all__ = ["ConstraintMetric", "log_mass_metric"]

CHUNK_ELEMENTS = 4_000_000


class ConstraintMetric:
    """Constrained pairs, and Z over them.

    Parameters
    ----------
    system : openmm.System
        Its constraints, whatever they are on.
    masses : (N,) array, optional
        amu; those of the System if absent.

    Attributes
    ----------
    pairs : (C, 2) int array
    lengths : (C,) array
        nm.
    inverse_masses : (N,) array
        1/amu.
    signs : (C, N) array
        Gradient of each distance by each atom, along the direction from the second atom to the first: 1, -1 or 0.

    Raises
    ------
    PotentialError
        If a constrained atom has no mass.
    """

    def __init__(self, system: openmm.System, masses: np.ndarray | None = None) -> None:
        n = system.getNumParticles()
        rows = {
            (min(i, j), max(i, j)): nm.value_in_unit(unit.nanometer)
            for i, j, nm in map(system.getConstraintParameters, range(system.getNumConstraints()))
        }
        self.pairs = np.array(list(rows), dtype=np.int64).reshape(-1, 2)
        self.lengths = np.array(list(rows.values()), dtype=np.float64)
        if masses is None:
            masses = np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(n)])
        if len(massless := [i for i in np.unique(self.pairs) if not masses[i] > 0]):
            raise PotentialError(f"atom {massless[0]} is constrained but has no mass: give it one, or no constraint")
        self.inverse_masses = 1 / np.where(masses > 0, masses, np.inf)
        self.signs = np.zeros((len(self), n))
        self.signs[np.arange(len(self)), self.pairs[:, 0]] = 1
        self.signs[np.arange(len(self)), self.pairs[:, 1]] = -1

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def couplings(self) -> np.ndarray:
        """(C, C): what the cosines between bonds are multiplied by to give Z, 1/amu."""
        product: np.ndarray = (self.signs * self.inverse_masses) @ self.signs.T
        return product

    def normalized(self, positions: Tensor) -> Tensor:
        """Z (B, C, C) of positions (B, N, 3) in nm, scaled to have ones on the diagonal."""
        pairs = torch.as_tensor(self.pairs, device=positions.device)
        bonds = positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]]
        directions = bonds / torch.linalg.vector_norm(bonds, dim=-1, keepdim=True)
        scale = 1 / np.sqrt(np.diagonal(self.couplings))
        weights = torch.as_tensor(self.couplings * np.outer(scale, scale)).to(positions)
        return weights * (directions @ directions.mT)


def log_mass_metric(molecule: Any, positions: Tensor, masses: np.ndarray | None = None) -> Tensor:
    """log sqrt(det Z) of configurations; frames of a constrained simulation have log-weights of minus this.

    Z is scaled to have ones on its diagonal, which changes the logarithm by a constant: it is zero where no two
    constrained bonds share an atom, and where those that do are at right angles, and negative otherwise.

    Parameters
    ----------
    molecule : Molecule or openmm.System
        With constraints; without any the result is zero.
    positions : (B, N, 3) tensor
        nm.
    masses : (N,) array, optional
        amu; those that the simulation had, where they are not those of the System.

    Returns
    -------
    (B,) tensor
        Dimensionless, float64; differentiable where there are constraints.

    References
    ----------
    Fixman, Proc. Natl. Acad. Sci. USA 71, 3050 (1974); Echenique, Cavasotto and Garcia-Risueno, Eur. Phys. J. Special
    Topics 200, 5 (2011).
    """
    metric = ConstraintMetric(system_of(molecule), masses)
    x = positions.double()
    if not len(metric) or not len(x):
        return x.new_zeros(len(x))
    chunk = max(CHUNK_ELEMENTS // len(metric) ** 2, 1)
    return torch.cat([0.5 * torch.linalg.slogdet(metric.normalized(part)).logabsdet for part in x.split(chunk)])
