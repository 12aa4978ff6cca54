"""Constrained distances in dynamics: positions on the constraints, velocities along them, weights of the frames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
import torch
from torch import Tensor

from boltzgen.coordinates.constrained import TOLERANCE_NM
from boltzgen.energy.mass_metric import ConstraintMetric, log_mass_metric
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError, StructureError

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["Constraints", "constrained_frames", "constraints_of", "metric_log_weights"]

TOLERANCE = 1e-5  # of each length, as OpenMM has it; float32 near the origin holds 1e-6
SPEED_TOLERANCE = 1e-4  # nm/ps; thermal speeds of hydrogens at 300 K are 1.6 nm/ps
MAX_ITERATIONS = 50


class Constraints:
    """Projections for many walkers at once, by quasi-Newton iteration.

    The equations for the multipliers have the matrix Z of the mass metric. That of the first configuration stands for
    all: Z depends on the angles between constrained bonds, which are stiff, so each iteration gains more than a digit.
    Where an iteration gains less than a factor of two (a freely jointed chain), each walker's own matrix takes over.

    Parameters
    ----------
    metric : ConstraintMetric
    positions : (3, N, B) tensor, nm
        Where Z is taken from; device and dtype of everything else.
    """

    def __init__(self, metric: ConstraintMetric, positions: Tensor) -> None:
        tensor = lambda values: torch.as_tensor(values, dtype=positions.dtype, device=positions.device)
        self._first, self._second = (torch.as_tensor(metric.pairs[:, k], device=positions.device) for k in (0, 1))
        self._lengths = tensor(metric.lengths).unsqueeze(1)
        self._spread = tensor(metric.inverse_masses[:, None] * metric.signs.T)  # (N, C)
        scale = np.sqrt(np.diagonal(metric.couplings))
        z = metric.normalized(positions[..., :1].permute(2, 1, 0).double())[0].cpu().numpy()
        self._inverse = tensor(np.linalg.inv(z * np.outer(scale, scale)))
        self._couplings = tensor(metric.couplings)

    def onto(self, positions: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (3, N, B) moved onto the constraints, along the bonds that `start` has; and the displacement.

        Raises
        ------
        PotentialError
            If a walker does not get there: its step was too long.
        """
        along = self._bonds(start)
        x, total = positions, torch.zeros_like(along[0])
        last, shared = math.inf, True
        for _ in range(MAX_ITERATIONS):
            bonds = self._bonds(x)
            # Half the error of the squared length over the length: linear in it, and without a square root.
            error = 0.5 * (bonds.square().sum(0) / self._lengths - self._lengths)
            worst = float((error / self._lengths).abs().max())
            if worst <= TOLERANCE:
                return x, self._moved(total, along)
            last, shared = worst, shared and worst < 0.5 * last
            total = total - self._multipliers(error, along, shared)
            x = positions + self._moved(total, along)
        raise PotentialError(
            f"constraints are not met after {MAX_ITERATIONS} iterations: use a shorter time step, or start from a "
            "relaxed structure"
        )

    def along(self, velocities: Tensor, positions: Tensor) -> Tensor:
        """Velocities (3, N, B) without what would change a constrained distance.

        Raises
        ------
        PotentialError
            If there are none: positions or velocities have left the range of numbers.
        """
        along = self._bonds(positions)
        v, last, shared = velocities, math.inf, True
        for _ in range(MAX_ITERATIONS):
            rate = (along * self._bonds(v)).sum(0) / self._lengths
            worst = float(rate.abs().max())
            if worst <= SPEED_TOLERANCE:
                return v
            last, shared = worst, shared and worst < 0.5 * last
            v = v - self._moved(self._multipliers(rate, along, shared), along)
        raise PotentialError("no velocities along the constraints were found: use a shorter time step")

    def _multipliers(self, error: Tensor, along: Tensor, shared: bool) -> Tensor:
        """Multipliers (C, B) that take an error (C, B) away to first order."""
        if shared:
            return self._inverse @ error
        directions = (along / self._lengths).permute(2, 1, 0)
        z = self._couplings * (directions @ directions.mT)
        return torch.linalg.solve(z, error.T.unsqueeze(2)).squeeze(2).T

    def _bonds(self, x: Tensor) -> Tensor:
        return x[:, self._first] - x[:, self._second]

    def _moved(self, multipliers: Tensor, along: Tensor) -> Tensor:
        """Displacement (3, N, B) by multipliers (C, B) along bonds (3, C, B)."""
        return self._spread @ (along * (multipliers / self._lengths))


def constraints_of(system: openmm.System, masses: np.ndarray, positions: Tensor) -> Constraints | None:
    """The constraints of a System for walkers at (3, N, B) positions; None if it has none."""
    metric = ConstraintMetric(system, masses)
    return Constraints(metric, positions) if len(metric) else None


def metric_log_weights(molecule: Any, positions: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
    """Log-weights (n,) of frames (n, N, 3) of constrained dynamics; zeros where nothing is constrained.

    Parameters
    ----------
    masses : (N,) array, optional
        amu; those of the System if absent.
    """
    return np.asarray(-log_mass_metric(molecule, torch.as_tensor(positions), masses).numpy())


def constrained_frames(molecule: Molecule, trajectory: Any, groups: np.ndarray | None = None) -> Ensemble:
    """Frames of a simulation that kept the constraints of a molecule, as an Ensemble with the weights they need.

    Dynamics with constraints samples another distribution than generators have as their target, by the factor of
    the mass metric; the weights take it out. Without constraints all weights are equal.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory or (n, N, 3) array, nm
        At the molecule's temperature, with the masses of its System.
    groups : (n,) int array, optional
        As in `Ensemble`.

    Raises
    ------
    StructureError
        If the number of atoms differs, or the frames do not keep the constraints to within 0.002 nm.
    """
    positions = np.asarray(getattr(trajectory, "xyz", trajectory))
    if positions.ndim != 3 or positions.shape[1:] != (molecule.n_atoms, 3):
        raise StructureError(f"the frames have shape {positions.shape}, not (n, {molecule.n_atoms}, 3) in nm")
    errors = np.abs(molecule.constraints.errors(positions)).max(axis=1, initial=0.0)
    if (errors >= TOLERANCE_NM).any():
        raise StructureError(
            f"{int((errors >= TOLERANCE_NM).sum())} of {len(errors)} frames do not keep the molecule's constraints "
            f"(by up to {errors.max():.3g} nm): they come from another simulation; build the System as it had it"
        )
    weights = metric_log_weights(molecule, positions)
    return Ensemble(positions=positions, log_weights=weights, kT=molecule.kT, molecule=molecule, groups=groups)
