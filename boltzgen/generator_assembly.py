"""The parts of an untrained generator of a molecule: coordinates, flow and potential."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from openmm import unit

from boltzgen.configurations import read_configurations
from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.energy import potential as choose_potential
from boltzgen.flows.assembly import cartesian_frame, check_kinds, molecular_flow
from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow
from boltzgen.flows.placed import PlacedFlow

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule

__all__ = ["untrained_flow"]

log = logging.getLogger(__name__)


def untrained_flow(
    molecule: Molecule,
    potential: Potential | None,
    coordinates: str,
    hydrogens: str,
    config: GeneratorConfig,
    seed: int,
    data: Any,
) -> tuple[MolecularFlow | PlacedFlow, Potential]:
    """Flow and potential of `BoltzmannGenerator.for_molecule`, whose parameters and errors these are."""
    check_kinds(coordinates, hydrogens)
    if config.surroundings and coordinates == "cartesian":
        raise ValueError(
            f"surroundings={config.surroundings} belongs to coordinates='internal': the networks of a Cartesian "
            "generator see all positions as they are; leave it out"
        )
    if config.temperature_range is not None:
        _check_temperature_range(config.temperature_range, molecule, coordinates, hydrogens)
    if potential is None:
        potential = choose_potential(molecule)
    chart = CoordinateChart.for_molecule(molecule, potential, omega=config.omega, fold_symmetry=config.fold_symmetry)
    if data is not None:
        seen = read_configurations(data, (molecule.n_atoms, 3), molecule, molecule.kT, target="")
        chart = chart.refined(seen.positions.numpy(force=True), seen.weights.numpy())
    frame = cartesian_frame(molecule, potential, chart, config.alignment) if coordinates == "cartesian" else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = molecular_flow(chart, config, coordinates, hydrogens, potential, molecule.kT, frame)
    if config.surroundings and not _sees_surroundings(flow):
        log.warning(
            "surroundings=%d has no effect on this molecule: no two of its heavy atoms are more than three bonds "
            "apart, or one is placed by a hydrogen",
            config.surroundings,
        )
    return flow, potential


def _sees_surroundings(flow: MolecularFlow | PlacedFlow) -> bool:
    heavy = flow.heavy if isinstance(flow, PlacedFlow) else flow
    return isinstance(heavy, MolecularFlow) and heavy.surroundings is not None


def _check_temperature_range(bounds: tuple[float, float], molecule: Molecule, coordinates: str, hydrogens: str) -> None:
    kelvin = molecule.temperature.value_in_unit(unit.kelvin)
    if (coordinates, hydrogens) != ("internal", "flow"):
        raise ValueError("a temperature range needs coordinates='internal' and hydrogens='flow'")
    if not bounds[0] <= kelvin <= bounds[1]:
        raise ValueError(f"temperature_range={bounds} leaves out the temperature of the molecule, {kelvin:g} K")
