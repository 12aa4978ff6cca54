"""Pictures of an ensemble and of a training: weighted, with units, the reference beside the result.

Every function takes an optional ``ax`` and returns the Axes it drew on, so that pictures can be combined and changed
afterwards. Samples of weight zero, infinite energies and values beyond an axis are counted in the picture: nothing is
left out without saying so. Colours are Okabe and Ito's (told apart by colour-blind readers), and every curve also has
a line style of its own, for print.
"""

from boltzgen.plotting.distributions import centres_of_mass, convergence, marginal
from boltzgen.plotting.energies import energy_correlation, energy_histogram, weights
from boltzgen.plotting.profiles import profile
from boltzgen.plotting.torsions import (
    free_energy_map,
    free_energy_profile,
    ramachandran,
    ramachandran_histogram,
    torsion_angles,
    torsion_marginal,
)
from boltzgen.plotting.training import populations, training_curve

__all__ = [
    "centres_of_mass",
    "convergence",
    "energy_correlation",
    "energy_histogram",
    "free_energy_map",
    "free_energy_profile",
    "marginal",
    "populations",
    "profile",
    "ramachandran",
    "ramachandran_histogram",
    "torsion_angles",
    "torsion_marginal",
    "training_curve",
    "weights",
]
