"""Free energies and averages from weighted ensembles, each a value with its 95 % interval, units and verdict."""

from boltzgen.free_energy.acceptance_ratio import bar, bar_log_z
from boltzgen.free_energy.basins import (
    BasinFreeEnergy,
    FreeEnergies,
    basin_difference,
    basin_free_energies,
    free_energy_of,
)
from boltzgen.free_energy.estimate import KJ_PER_KCAL, EnergyEstimate, Estimate, LogZ
from boltzgen.free_energy.multistate import Multistate, ReducedEnergies, mbar, reduced_energies
from boltzgen.free_energy.observables import expectation
from boltzgen.free_energy.partition import log_z
from boltzgen.free_energy.perturbation import Perturbation, perturb
from boltzgen.free_energy.populations import Populations, TorsionClusters, cluster_torsions, populations
from boltzgen.free_energy.profiles import Profile, profile
from boltzgen.free_energy.temperature import Decomposition, Reweighted, at_temperature, decompose

__all__ = [
    "KJ_PER_KCAL",
    "BasinFreeEnergy",
    "Decomposition",
    "EnergyEstimate",
    "Estimate",
    "FreeEnergies",
    "LogZ",
    "Multistate",
    "Perturbation",
    "Populations",
    "Profile",
    "ReducedEnergies",
    "Reweighted",
    "TorsionClusters",
    "at_temperature",
    "bar",
    "bar_log_z",
    "basin_difference",
    "basin_free_energies",
    "cluster_torsions",
    "decompose",
    "expectation",
    "free_energy_of",
    "log_z",
    "mbar",
    "perturb",
    "populations",
    "profile",
    "reduced_energies",
]
