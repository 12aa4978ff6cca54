"""What a sampler moves: all atoms of a molecule, or those alone that its potential is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy import Potential, log_mass_metric
from boltzgen.errors import PotentialError
from boltzgen.sampling.constraints import Constraints, constraints_of
from boltzgen.sampling.langevin import start_positions, system_masses

__all__ = ["PartialPotential", "Particles", "particle_numbers"]


@runtime_checkable
class PartialPotential(Protocol):
    """A potential of some atoms of a molecule, the others being a function of these.

    Attributes
    ----------
    atoms : (n,) int array
        Their indices in the molecule, in the order of the potential's positions.
    target : str
        What the potential's Boltzmann distribution is, in words.
    whole : Potential
        What its energies come from; placing the other atoms may take evaluations of it too.
    """

    atoms: np.ndarray
    target: str
    whole: Potential

    def all_atoms(self, positions: Tensor) -> Tensor:
        """Positions (B, N, 3) of the whole molecule for (B, n, 3), in nm."""


def particle_numbers(potential: Potential, atoms: Sequence[int]) -> tuple[int, ...]:
    """Atoms of a molecule by their number among the particles of a potential.

    Raises
    ------
    PotentialError
        If one follows from others.
    """
    if not isinstance(potential, PartialPotential):
        return tuple(int(atom) for atom in atoms)
    number = {int(atom): k for k, atom in enumerate(potential.atoms)}
    following = [atom for atom in atoms if atom not in number]
    if following:
        raise PotentialError(f"atom {following[0]} does not move by itself: it follows from the others")
    return tuple(number[int(atom)] for atom in atoms)


class Particles:
    """The particles of a sampler, and how they belong to the molecule.

    Parameters
    ----------
    molecule : Molecule
    potential : Potential
        Of all atoms, or a `PartialPotential`.
    masses : (N,) array, optional
        amu, of all atoms; those of the System if absent.

    Attributes
    ----------
    atoms : (n,) int array
        Indices of the particles in the molecule.
    masses : (n,) array
        amu.
    target : str
        What is sampled where it is not the Boltzmann distribution of all atoms; else empty.

    Raises
    ------
    PotentialError
        If the potential has another number of atoms, or the System constrains the distance of two atoms that a
        `PartialPotential` moves.
    """

    def __init__(self, molecule: Any, potential: Potential, masses: np.ndarray | None = None) -> None:
        self.molecule, self._potential = molecule, potential
        self._partial = potential if isinstance(potential, PartialPotential) else None
        self._all_masses = system_masses(molecule) if masses is None else masses
        n_atoms = len(self._all_masses)
        self.atoms = np.arange(n_atoms) if self._partial is None else np.asarray(self._partial.atoms)
        self.masses = self._all_masses[self.atoms]
        self.target = "" if self._partial is None else self._partial.target
        if potential.n_atoms != len(self.atoms):
            raise PotentialError(f"the potential is of {potential.n_atoms} atoms, the molecule has {n_atoms}")
        if self._partial is not None:
            self._refuse_constraints(set(self.atoms.tolist()))

    @property
    def evaluations(self) -> int:
        """Evaluations with forces so far, over the life of the potential; those that place other atoms included."""
        counted = self._potential if self._partial is None else self._partial.whole
        return counted.counts.force

    def start(self, start: Any, n_walkers: int) -> Tensor:
        """Coordinates (3, n, n_walkers) in nm from whole structures; see `start_positions`."""
        return start_positions(self.molecule, start, n_walkers)[:, torch.from_numpy(self.atoms)].contiguous()

    def constraints(self, positions: Tensor) -> Constraints | None:
        """Of walkers at (3, n, B) positions; None where there are none, or where they are part of a function."""
        if self._partial is not None:
            return None
        return constraints_of(self.molecule.system, self._all_masses, positions)

    def all_atoms(self, frames: Tensor) -> Tensor:
        """Frames (B, N, 3) of the whole molecule from those of the particles, (B, n, 3)."""
        if self._partial is None:
            return frames
        with torch.no_grad():
            return self._partial.all_atoms(frames).to(frames)

    def log_metric(self, frames: np.ndarray) -> np.ndarray:
        """What frames (B, N, 3) of these dynamics weigh too much, (B,): the mass metric of the constraints."""
        if self._partial is not None:
            return np.zeros(len(frames))
        return np.asarray(log_mass_metric(self.molecule, torch.from_numpy(frames), self._all_masses).numpy())

    def _refuse_constraints(self, moving: set[int]) -> None:
        system = self.molecule.system
        for i, j, _ in map(system.getConstraintParameters, range(system.getNumConstraints())):
            if i in moving and j in moving:
                raise PotentialError(f"atoms {i} and {j} are constrained, and a potential of some atoms moves both")
