"""The flow of a molecule by the names of its parts."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import torch

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.hydrogens import HydrogenCoordinates, heavy_chart
from boltzgen.coordinates.reference import minimized_positions
from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.errors import StructureError
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.flows.hydrogen_placement import HydrogenFlow, HydrogenMinimizer, HydrogenNetwork
from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow
from boltzgen.flows.placed import CartesianFrame, PlacedFlow

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule

__all__ = ["COORDINATES", "HYDROGENS", "cartesian_frame", "check_kinds", "molecular_flow"]

COORDINATES = ("internal", "cartesian")
HYDROGENS = ("flow", "network", "minimized")
STIFFEST = 1e7  # kJ/mol/nm^2; stretch terms of force fields have up to 1e6
WIDEST_NM = 0.02  # of any internal mode of an untrained Cartesian flow; wider ones are torsions, not straight lines


def check_kinds(coordinates: str, hydrogens: str) -> None:
    """Refuse unknown names.

    Raises
    ------
    ValueError
        Names the nearest known one.
    """
    for argument, value, known in (("coordinates", coordinates, COORDINATES), ("hydrogens", hydrogens, HYDROGENS)):
        if value not in known:
            near = get_close_matches(str(value), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {argument}={value!r}: choose one of {', '.join(map(repr, known))}{hint}")


def molecular_flow(
    chart: CoordinateChart,
    config: GeneratorConfig,
    coordinates: str,
    hydrogens: str,
    potential: Potential,
    kT: float,
    frame: CartesianFrame | None = None,
) -> MolecularFlow | PlacedFlow:
    """An untrained flow.

    Parameters
    ----------
    coordinates : {"internal", "cartesian"}
    hydrogens : {"flow", "network", "minimized"}
    potential : Potential
        For ``hydrogens="minimized"``.
    kT : float
        kJ/mol.
    frame : CartesianFrame, optional
        For ``coordinates="cartesian"``; see `cartesian_frame`.
    """
    check_kinds(coordinates, hydrogens)
    if (coordinates, hydrogens) == ("internal", "flow"):
        return MolecularFlow(chart, config)
    heavy: MolecularFlow | CartesianFlow
    if coordinates == "internal":
        heavy = MolecularFlow(heavy_chart(chart), config)
    elif frame is not None:
        heavy = frame.flow(config)
    else:
        raise ValueError("a Cartesian flow needs a frame: see cartesian_frame")
    return PlacedFlow(chart, config, heavy, _hydrogens(chart, config, hydrogens, potential, kT), frame)


def _hydrogens(
    chart: CoordinateChart, config: GeneratorConfig, kind: str, potential: Potential, kT: float
) -> HydrogenFlow | HydrogenNetwork | HydrogenMinimizer:
    if kind == "network":
        return HydrogenNetwork(chart, config.placement_hidden, n_harmonics=config.n_harmonics)
    if kind == "minimized":
        return HydrogenMinimizer(chart, potential, kT)
    return HydrogenFlow(chart, config.hydrogen_reach, **config.hydrogen_sizes())


def cartesian_frame(
    molecule: Molecule, potential: Potential, chart: CoordinateChart, strength: float
) -> CartesianFrame:
    """The minimised structure, and the harmonic covariance of its heavy atoms under energy and alignment penalty.

    The covariance is that of the heavy atoms in the normal approximation to exp(-U/kT - penalty), with no internal mode
    wider than 0.02 nm: a wider one is a torsion, along whose tangent bonds would stretch. So untrained samples lie near
    the reference, in one basin; the others are learned from data.

    Raises
    ------
    StructureError
        If the heavy atoms span no frame or define no orientation, or bonds between them are constrained.
    """
    heavy = HydrogenCoordinates(chart).heavy.numpy()
    if rigid := chart.constrained(False):
        raise StructureError(
            f"the bond {chart.rows[rigid[0]].label} is constrained, but a Cartesian generator moves every heavy atom "
            "freely: use coordinates='internal', or a System with constraints=HBonds or None"
        )
    positions = minimized_positions(molecule)
    positions = positions - positions[heavy].mean(0)
    if np.linalg.svd(positions[heavy])[1][1] < 1e-3:
        raise StructureError("the heavy atoms lie on a line: use coordinates='internal'")
    penalty = AlignmentPenalty(positions[heavy], strength, atoms=heavy)
    x = torch.as_tensor(positions)
    energy_hessian = _hessian(potential, x) + _constraint_hessian(molecule, positions)
    values, vectors = np.linalg.eigh(energy_hessian / molecule.kT)
    # The six modes of rigid motion come first and cost no energy; the penalty alone limits them.
    values = np.concatenate([np.zeros(6), values[6:].clip(min=1 / WIDEST_NM**2)])
    total = (vectors * values) @ vectors.T + _penalty_hessian(penalty, x)
    covariance_of_all = np.linalg.inv(0.5 * (total + total.T))
    columns = (3 * heavy[:, None] + np.arange(3)).ravel()
    return CartesianFrame(positions[heavy], np.linalg.cholesky(covariance_of_all[np.ix_(columns, columns)]))


def _hessian(potential: Potential, x: torch.Tensor, step: float = 1e-5) -> np.ndarray:
    """Second derivatives (3N, 3N) of the energy in kJ/mol/nm^2 by central differences of the forces."""
    shifts = step * torch.eye(x.numel(), dtype=x.dtype).unflatten(1, tuple(x.shape))
    _, forces = potential.energy_and_forces(torch.cat([x + shifts, x - shifts]))
    forward, backward = forces.flatten(1).split(x.numel())
    hessian = ((backward - forward) / (2 * step)).numpy()
    return 0.5 * (hessian + hessian.T)


def _constraint_hessian(molecule: Molecule, positions: np.ndarray) -> np.ndarray:
    """Second derivatives (3N, 3N) of a stretch energy, ten times as stiff as any, in the place of each constraint."""
    hessian = np.zeros((positions.size, positions.size))
    for (i, j), nm in molecule.constraints:
        direction = np.zeros_like(positions)
        direction[i] = (positions[i] - positions[j]) / nm
        direction[j] = -direction[i]
        hessian += STIFFEST * np.outer(direction, direction)
    return hessian


def _penalty_hessian(penalty: AlignmentPenalty, x: torch.Tensor, step: float = 1e-5) -> np.ndarray:
    shifts = step * torch.eye(x.numel(), dtype=x.dtype).unflatten(1, tuple(x.shape))
    _, gradient = penalty.value_and_gradient(torch.cat([x + shifts, x - shifts]))
    forward, backward = gradient.flatten(1).split(x.numel())
    return ((forward - backward) / (2 * step)).numpy()
