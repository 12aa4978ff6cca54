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

__all__ = ["Agreement", "perturbed_frames", "reference_terms", "single_precision_error", "verify_terms"]

ENERGY_TOLERANCE = 1e-6  # kJ/mol per term, plus the rounding of very large terms:
ROUNDING = 1e-10
GRADIENT_TOLERANCE = 1e-5  # relative to the largest component
SINGLE_TOLERANCE = 1e-5  # of the sum of the absolute contributions to a term, or of this, where those nearly vanish:
SINGLE_FLOOR = 100.0  # kJ/mol; a term may always be 1e-3 kJ/mol off, a twentieth of what is allowed to the total
PLAUSIBLE = 1e4  # kJ/mol: above, configurations carry no weight at any temperature of interest


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
    single : dict of float
        Largest error of float32 per force, relative to the sum of its absolute contributions, below 1e4 kJ/mol.
    """

    frames: int
    energy: dict[str, float]
    gradient: float
    single: dict[str, float]

    def report(self) -> str:
        """Table of the differences."""
        lines = [f"Largest difference from OpenMM Reference on {self.frames} perturbed frames, kJ/mol"]
        lines[0] += "; error of float32, relative:" if self.single else ":"
        for name, value in self.energy.items():
            single = f" {self.single[name]:10.1e}" if name in self.single else ""
            lines.append(f"  {name:<28s} {value:.1e}{single}")
        lines.append(f"  {'forces (relative)':<28s} {self.gradient:.1e}")
        return "\n".join(lines)


def perturbed_frames(positions: Any, n_frames: int, seed: int = 0) -> NDArray[np.float64]:
    """Frames (n, N, 3) in nm around a structure: three quarters moved by 0.01-0.03 nm, the rest by 0.1 nm.

    The latter take every dihedral round the circle.
    """
    base = _as_array(positions)
    random = np.random.default_rng(seed)
    width = np.where(np.arange(n_frames) % 4 == 3, 0.1, random.uniform(0.01, 0.03, n_frames))
    return base + width[:, None, None] * random.normal(size=(n_frames, *base.shape))


def _as_array(positions: Any) -> NDArray[np.float64]:
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    try:
        base = np.array([[float(c) for c in row] for row in positions], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PotentialError("positions= takes one structure, (N, 3) in nm or a Quantity") from error
    if base.ndim != 2 or base.shape[1:] != (3,) or not np.isfinite(base).all():
        raise PotentialError(f"positions= takes one finite structure, (N, 3) in nm or a Quantity, not {base.shape}")
    return base


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
    energies: dict[str, np.ndarray] = {name: np.empty(len(frames)) for name in names}
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
    if frames.shape[1] != system.getNumParticles():
        raise PotentialError(
            f"the System has {system.getNumParticles()} particles, but positions are given for {frames.shape[1]}"
        )
    expected, expected_forces = reference_terms(system, frames)
    positions = torch.from_numpy(frames)
    found = {name: value.numpy() for name, value in terms(positions).items()}
    largest: dict[str, float] = {}
    for name, reference in expected.items():
        difference = np.abs(found[name] - reference) if name in found else np.abs(reference)
        moderate = np.abs(reference) < PLAUSIBLE
        largest[name] = float(difference[moderate].max(initial=0.0))
        if not np.all(difference <= ENERGY_TOLERANCE + ROUNDING * np.abs(reference)):
            raise PotentialError(
                f"{name} as compiled differs from OpenMM by {np.max(difference):.3g} kJ/mol; use OpenMMPotential"
            )
    scale = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    gradient = float((np.abs(forces(positions).numpy() - expected_forces) / np.maximum(scale, 1e-3)).max())
    if not gradient <= GRADIENT_TOLERANCE:
        raise PotentialError(
            f"the compiled forces differ from OpenMM by {gradient:.1g} of the largest; use OpenMMPotential"
        )
    return Agreement(n_frames, {name: largest[name] for name in found}, gradient, {})


def single_precision_error(
    structure: Any,
    terms: Callable[[Tensor], dict[str, Tensor]],
    absolute: Callable[[Tensor], dict[str, Tensor]],
    n_frames: int = 16,
) -> dict[str, float]:
    """Largest error of float32 per force, relative to the sum of its absolute contributions (at least 100 kJ/mol).

    Only frames below 1e4 kJ/mol count, and the structure itself, whatever its energy.
    """
    frames = np.concatenate((perturbed_frames(structure, n_frames), _as_array(structure)[None]))
    positions = torch.from_numpy(frames).float()
    exact = terms(positions.double())
    plausible = torch.stack(list(exact.values())).sum(0) < PLAUSIBLE if exact else torch.zeros(0, dtype=torch.bool)
    plausible[-1:] = True
    scale = absolute(positions.double())
    errors = {}
    for name, value in terms(positions).items():
        relative = (value.double() - exact[name]).abs() / scale[name].clamp(min=SINGLE_FLOOR)
        errors[name] = float(relative[plausible].max())
    return errors
