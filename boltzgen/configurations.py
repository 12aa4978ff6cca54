"""Configurations given as data: their positions, what each of them weighs, and whether they are of the right target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy import log_mass_metric
from boltzgen.ensemble import ALL_ATOMS, Ensemble
from boltzgen.errors import StructureError

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["Configurations", "read_configurations", "weighting"]

SAME_KT = 1e-6  # relative; temperatures that are rounded in files differ by less


@dataclass(frozen=True)
class Configurations:
    """Positions (n, N, 3) in nm, with weights (n,) that sum to one, in float64."""

    positions: Tensor
    weights: Tensor

    def rows(self, chosen: Tensor, purpose: str) -> Configurations:
        """Those of a (n,) bool mask, with weights that sum to one again.

        Raises
        ------
        StructureError
            If they have no weight; names their purpose.
        """
        weights = self.weights[chosen]
        if len(weights) and not float(weights.sum()) > 0:
            raise StructureError(f"the configurations {purpose} have no weight: hold out others (validation=, seed=)")
        return Configurations(self.positions[chosen], weights / weights.sum())


def read_configurations(
    data: Any, shape: tuple[int, int], molecule: Molecule | None, kT: float, target: str
) -> Configurations:
    """Positions and weights of what a user gives as data.

    The weights of an Ensemble are those of ``unbiased()``. What comes without weights is taken as it is, of a molecule
    with constraints as frames of dynamics that kept these, which count by the mass metric
    (`boltzgen.energy.log_mass_metric`).

    Parameters
    ----------
    data : mdtraj.Trajectory, Ensemble, or (n, N, 3) array or tensor in nm
    shape : (N, d)
        Expected of each configuration.
    molecule : Molecule or None
    kT : float
        kJ/mol, that an Ensemble must have.
    target : str
        That an Ensemble must have, as `Ensemble.target`.

    Raises
    ------
    StructureError
        If the shape is another, or an Ensemble is of another temperature or target.
    """
    if isinstance(data, Ensemble):
        _check_target(data, kT, target)
        values: Any = data.positions
    else:
        values = getattr(data, "xyz", data)
    positions = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    if positions.ndim != 3 or tuple(positions.shape[1:]) != shape:
        raise StructureError(
            f"the data have shape {tuple(positions.shape)}; this generator needs (n, {shape[0]}, {shape[1]}) in nm"
        )
    if isinstance(data, Ensemble):
        return Configurations(positions, torch.as_tensor(data.unbiased().weights).double())
    if molecule is None:
        return Configurations(positions, torch.full((len(positions),), 1 / len(positions), dtype=torch.float64))
    return Configurations(positions, torch.softmax(-log_mass_metric(molecule, positions.detach().cpu()), dim=0))


def weighting(data: Any, molecule: Molecule | None) -> str | None:
    """What the mass metric of constraints does to the weights of data, or would do to equal ones; None if nothing."""
    if molecule is None or not len(molecule.constraints):
        return None
    n = len(molecule.constraints)
    if isinstance(data, Ensemble):
        log_weights = data.unbiased().log_weights
        finite = np.isfinite(log_weights)
        if not finite.any() or np.ptp(log_weights[finite]) > 0:
            return None
        spread = _spread(data.positions[finite], molecule)
        return (
            f"the weights of the Ensemble are equal and taken as they are; if these are frames of dynamics with {n} "
            f"constraints, the mass metric is missing, by which log-weights vary by {spread:.2g}: give the positions "
            "alone, or see sampling.constrained_frames"
        )
    spread = _spread(getattr(data, "xyz", data), molecule)
    return (
        f"configurations of dynamics with {n} constraints are weighted by the mass metric: log-weights vary by "
        f"{spread:.2g}"
    )


def _spread(positions: Any, molecule: Molecule) -> float:
    """Standard deviation of the log-weights that the mass metric gives to positions (n, N, 3) in nm."""
    return float(log_mass_metric(molecule, torch.as_tensor(positions).detach().cpu()).std(correction=0))


def _check_target(ensemble: Ensemble, kT: float, target: str) -> None:
    as_they_are = "give its positions alone (ens.positions) to fit them as they are"
    if not math.isclose(ensemble.kT, kT, rel_tol=SAME_KT):
        raise StructureError(
            f"the Ensemble has kT = {ensemble.kT:.6g} kJ/mol, the target of the generator {kT:.6g} kJ/mol: reweight it "
            f"by ens.at_temperature(), or {as_they_are}"
        )
    if ensemble.target != target:
        remedy = "reweight it by placement.with_placed_hydrogens" if target else "give one of all atoms"
        raise StructureError(
            f"the Ensemble is of {ensemble.target or ALL_ATOMS}, the generator of {target or ALL_ATOMS}: {remedy}, or "
            f"{as_they_are}"
        )
