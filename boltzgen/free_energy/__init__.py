"""Free energies and averages from weighted ensembles, each a value with its 95 % interval, units and verdict."""

from boltzgen.free_energy.acceptance_ratio import bar, bar_log_z
from boltzgen.free_energy.basins import BasinFreeEnergy, FreeEnergies, basin_free_energies, free_energy_of
from boltzgen.free_energy.estimate import KJ_PER_KCAL, EnergyEstimate, Estimate, LogZ
from boltzgen.free_energy.partition import log_z
from boltzgen.free_energy.perturbation import Perturbation, perturb

__all__ = [
    "KJ_PER_KCAL",
    "BasinFreeEnergy",
    "EnergyEstimate",
    "Estimate",
    "FreeEnergies",
    "LogZ",
    "Perturbation",
    "bar",
    "bar_log_z",
    "basin_free_energies",
    "free_energy_of",
    "log_z",
    "perturb",
]
