"""Term-by-term comparison of a compiled System with OpenMM's Reference platform."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit
from torch import Tensor

from boltzgen.energy.read import force_names
from boltzgen.errors import PotentialError

__all__ = ["Agreement", "perturbed_frames", "reference_terms", "verify_terms"]

ENERGY_TOLERANCE = 1e-6  # kJ/mol per term, plus the rounding of very large terms:
ROUNDING = 1e-10
GRADIENT_TOLERANCE = 1e-5  # relative to the largest component


@dataclass(frozen=True)
class Agreement:
    """Largest differences from OpenMM's Reference platform on perturbed frames.

    Attributes
    ----------
    frames : int
        Number of frames compared.
    energy : dict of float
        Largest difference per force, kJ/mol, over frames where that term is below 1e4 kJ/mol.
    gradient : float
        Largest difference of a force component, relative to the largest component of its frame.
    """

    frames: int
    energy: dict[str, float]
    gradient: float

    def report(self) -> str:
        """Table of the differences."""
        lines = [f"Largest difference from OpenMM Reference on {self.frames} perturbed frames, kJ/mol:"]
        lines += [f"  {name:<28s} {value:.1e}" for name, value in self.energy.items()]
        lines.append(f"  {'forces (relative)':<28s} {self.gradient:.1e}")
        return "\n".join(lines)


def perturbed_frames(positions: Any, n_frames: int, seed: int = 0) -> NDArray[np.float64]:
    """Frames (n, N, 3) in nm around a structure: three quarters moved by 0.01-0.03 nm, the rest by 0.1 nm.

    The latter take every dihedral round the circle.
    """
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    base = np.array([[float(c) for c in row] for row in positions], dtype=np.float64)
    random = np.random.default_rng(seed)
    width = np.where(np.arange(n_frames) % 4 == 3, 0.1, random.uniform(0.01, 0.03, n_frames))
    return base + width[:, None, None] * random.normal(size=(n_frames, *base.shape))


def reference_terms(
    system: openmm.System, frames: NDArray[np.float64]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Energy per force (kJ/mol) and total forces (kJ/mol/nm) from OpenMM's Reference platform."""
    system = copy.deepcopy(system)
    names = force_names(system)
    if len(names) > 32:
        raise PotentialError(f"the System has {len(names)} forces; at most 32 can be told apart")
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    energies = {name: np.empty(len(frames)) for name in names}
    forces = np.empty_like(frames)
    for index, frame in enumerate(frames):
        context.setPositions(frame)
        forces[index] = context.getState(getForces=True).getForces(asNumpy=True)._value
        for group, name in enumerate(names):
            energies[name][index] = context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value
    return energies, forces


def verify_terms(
    system: openmm.System,
    structure: Any,
    terms: Callable[[Tensor], dict[str, Tensor]],
    forces: Callable[[Tensor], Tensor],
    n_frames: int = 16,
) -> Agreement:
    """Compare energies by term and total forces with OpenMM's Reference platform, in float64.

    Raises
    ------
    PotentialError
        A term differs by more than 1e-6 kJ/mol, or a force by more than 1e-5 of the largest.
    """
    frames = perturbed_frames(structure, n_frames)
    expected, expected_forces = reference_terms(system, frames)
    positions = torch.from_numpy(frames)
    found = {name: value.numpy() for name, value in terms(positions).items()}
    largest: dict[str, float] = {}
    for name, reference in expected.items():
        difference = np.abs(found[name] - reference) if name in found else np.abs(reference)
        moderate = np.abs(reference) < 1e4
        largest[name] = float(difference[moderate].max(initial=0.0))
        if not np.all(difference <= ENERGY_TOLERANCE + ROUNDING * np.abs(reference)):
            raise PotentialError(
                f"{name} as compiled differs from OpenMM by {np.nanmax(difference):.3g} kJ/mol; use OpenMMPotential"
            )
    scale = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    gradient = float((np.abs(forces(positions).numpy() - expected_forces) / np.maximum(scale, 1e-3)).max())
    if not gradient <= GRADIENT_TOLERANCE:
        raise PotentialError(
            f"the compiled forces differ from OpenMM by {gradient:.1g} of the largest; use OpenMMPotential"
        )
    return Agreement(n_frames, {name: largest[name] for name in found}, gradient)
