"""Hydrogens given heavy atoms, three kinds behind one interface: a conditional flow, a network, a minimiser.

Only the first has the all-atom Boltzmann distribution as its target. The other two are a function h of the heavy atoms
x_C, so that a generator with them has the target exp(-U(h(x_C))/kT) on the heavy atoms alone. This is not the marginal
of the Boltzmann distribution: the width of the hydrogens' distribution around their minimum is left out, which shifts
the populations of all basins where that width differs (Felardos et al. 2022, appendix E: 6 % became 1.21 %).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.folding import Folding
from boltzgen.flows.hydrogen_groups import find_groups
from boltzgen.flows.hydrogen_minimization import minimized_variables
from boltzgen.flows.hydrogen_variables import HydrogenVariables
from boltzgen.flows.hydrogens import LocalHydrogens
from boltzgen.flows.networks import angle_rows, multilayer_perceptron

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential

__all__ = ["HydrogenFlow", "HydrogenMinimizer", "HydrogenNetwork", "Hydrogens"]


class Hydrogens(Protocol):
    """What every kind offers.

    Attributes
    ----------
    kind : str
        The name that users choose it by.
    is_exact : bool
        Whether the target is the all-atom distribution.
    target : str
        The target in words.
    """

    kind: str
    is_exact: bool
    target: str
    variables: HydrogenVariables

    def sample(self, heavy: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm for heavy atoms (B, n_heavy, 3), and the hydrogens' log-density (B,)."""

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,) of the hydrogens in positions (B, N, 3) given the heavy atoms; zero where they are fixed."""


class HydrogenFlow(nn.Module):
    """Conditional flow with exact density on the positions of the hydrogens.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    reach : int
        Bonds within which hydrogens see heavy atoms; see `find_groups`.
    n_harmonics : int
        Harmonics of the heavy atoms' torsions that the conditioners see.
    sizes :
        Of `LocalHydrogens`.
    """

    kind = "flow"
    is_exact = True
    target = "exp(-U/kT) of all atoms"

    def __init__(
        self, chart: CoordinateChart, reach: int, *, hidden: int, layers: int, n_bins: int, n_harmonics: int
    ) -> None:
        super().__init__()
        self.n_harmonics = n_harmonics
        self.variables = HydrogenVariables(chart)
        heavy = set(self.variables.coordinates.heavy.tolist())
        column = {index: k for k, index in enumerate(self.variables.coordinates.columns.tolist())}
        groups = [
            replace(group, torsion=column[group.torsion], siblings=tuple(column[i] for i in group.siblings))
            for group in chart.symmetry
            if group.moved.isdisjoint(heavy)
        ]
        self.folding = Folding(groups, chart.internal.n_atoms)
        # Groups of heavy atoms are brought into their intervals first: hydrogens know them as MolecularFlow has them.
        self.heavy_folding = Folding(
            [group for group in chart.symmetry if not group.moved.isdisjoint(heavy)], chart.internal.n_atoms
        )
        orders = {group.torsion: group.order for group in chart.symmetry}
        folds = torch.tensor([orders.get(i, 1) for i in chart.indices(True, True)], dtype=torch.long)
        n_heavy = (self.variables.features.n_torsions, self.variables.features.n_stiff)
        self.flow = LocalHydrogens(
            *(find_groups(chart, reach), folds, self.variables.n_stiff, 0, n_heavy),
            hidden=hidden,
            layers=layers,
            n_bins=n_bins,
            n_harmonics=n_harmonics,
        )

    def sample(self, heavy: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """See `Hydrogens`; labels within rotating groups (CH3, NH3) are drawn at random."""
        variables = self.variables.coordinates
        labels = self._heavy_labels(heavy)
        heavy = self._whole(heavy).gather(1, labels)[:, variables.heavy]
        torsions, stiff, log_q = self.flow.sample(self._seen(heavy), generator)
        coordinates, log_det = self.variables.to_coordinates(torsions.T, stiff.T, None)
        placed, log_volume = variables.place(heavy, self.folding.torsions(coordinates))
        placed = self.folding.relabel(placed, self.folding.draw(len(placed), generator))
        # Folding a torsion m times multiplies the density by m, the random label divides it by m.
        return torch.zeros_like(placed).scatter(1, labels, placed), log_q - log_det - log_volume

    def log_prob(self, positions: Tensor) -> Tensor:
        """See `Hydrogens`; -inf outside the bounds of the hydrogens' coordinates, and off their constrained bonds."""
        positions = self.folding.representative(self.heavy_folding.representative(positions))
        coordinates, held = self.variables.constrained.pin(self.variables.coordinates.read(positions))
        log_volume = self.variables.coordinates.log_volume(coordinates)
        torsions, stiff, log_det, inside = self.variables.to_variables(self.folding.variables(coordinates), None)
        seen = self._seen(positions[:, self.variables.coordinates.heavy])
        log_q = self.flow.log_prob(torsions.T, stiff.T, seen) + log_det - log_volume
        return torch.where(inside & held, log_q, torch.full_like(log_q, -torch.inf))

    def _seen(self, heavy: Tensor) -> Tensor:
        """What `LocalHydrogens` is given of heavy atoms (B, n_heavy, 3) of representatives.

        Stiff coordinates themselves, not whitened.
        """
        torsions, z = self.variables.features(heavy)
        return torch.cat([angle_rows(torsions.T, self.n_harmonics), self.variables.features.bounded.factor @ z.T])

    def _whole(self, heavy: Tensor) -> Tensor:
        """Heavy atoms (B, n_heavy, 3) in their places among all atoms (B, N, 3), the hydrogens at the origin."""
        coordinates = self.variables.coordinates
        return heavy.new_zeros(len(heavy), coordinates.n_atoms, 3).index_copy(1, coordinates.heavy, heavy)

    def _heavy_labels(self, heavy: Tensor) -> Tensor:
        """The relabelling (B, N, 3) of all atoms that makes representatives of heavy atoms (B, n_heavy, 3)."""
        labels = self.heavy_folding.representative_labels(self._whole(heavy))
        return labels.unsqueeze(-1).expand(-1, -1, 3)


class _FixedHydrogens(nn.Module):
    """Hydrogens that are a function of the heavy atoms."""

    is_exact = False
    target = "exp(-U(h(x_C))/kT) on the heavy atoms x_C alone, with the hydrogens h(x_C) at their energy minimum"

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        self.variables = HydrogenVariables(replace(chart, symmetry=()))

    def log_prob(self, positions: Tensor) -> Tensor:
        """Zeros (B,): the density is that of the heavy atoms."""
        return positions.new_zeros(len(positions))


class HydrogenNetwork(_FixedHydrogens):
    """The deterministic placement of the paper: a network from heavy atoms to the hydrogens' internal coordinates.

    The target is exp(-U(h(x_C))/kT) on the heavy atoms alone; see the notes of this module. An untrained network gives
    the minimum in the harmonic approximation; `boltzgen.placement.train_placement` trains it on energies.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    n_hidden, n_layers : int
        "3 layers separated by CELUs and a hidden size of 512": three linear layers.
    n_harmonics : int
        Harmonics of the heavy atoms' torsions among the inputs.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), section 5 and appendix E.
    """

    kind = "network"

    def __init__(self, chart: CoordinateChart, n_hidden: int = 512, n_layers: int = 3, n_harmonics: int = 3) -> None:
        super().__init__(chart)
        self.n_harmonics = n_harmonics
        self.network = multilayer_perceptron(
            self.variables.n_context(n_harmonics),
            n_hidden,
            2 * self.variables.n_torsions + self.variables.n_stiff,
            n_layers - 1,
            activation=nn.CELU,
        )

    def sample(self, heavy: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) with the hydrogens where the network puts them, and zeros (B,)."""
        given, heavy_z = self.variables.context(heavy, self.n_harmonics)
        n = self.variables.n_torsions
        sine, cosine, z = self.network(given).tensor_split([n, 2 * n], dim=1)
        torsions = self.variables.torsion_centres + torch.atan2(sine, 1 + cosine)
        coordinates, _ = self.variables.to_coordinates(torsions, z, heavy_z)
        return self.variables.coordinates.place(heavy, coordinates)[0], heavy.new_zeros(len(heavy))


class HydrogenMinimizer(_FixedHydrogens):
    """Hydrogens minimised for each heavy-atom configuration, in batches: what a placement network should learn.

    The target is exp(-U(h(x_C))/kT) on the heavy atoms alone; see the notes of this module. The minimum is the one next
    to the harmonic guess. Its evaluations are counted by the potential.

    Gradients run through the heavy atoms with the hydrogens' bonds, angles and torsions held: at the minimum the energy
    does not change to first order with those that are free, and constrained bonds turn with the heavy atoms, so this is
    the whole gradient of U(h(x_C)). With the hydrogens held in space the force along constrained bonds would be lost.
    The minimiser is `minimize_batch`, not OpenMM's.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    potential : Potential
    kT : float
        kJ/mol; sets the tolerance only.
    """

    kind = "minimized"

    def __init__(self, chart: CoordinateChart, potential: Potential, kT: float) -> None:
        super().__init__(chart)
        self.potential, self.kT = potential, kT

    def sample(self, heavy: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) with minimised hydrogens, and zeros (B,)."""
        with torch.no_grad():
            positions = minimized_variables(self.variables, self.potential, self.kT, heavy)
            coordinates = self.variables.coordinates.read(positions).to(heavy)
        return self.variables.coordinates.place(heavy, coordinates)[0], heavy.new_zeros(len(heavy))
