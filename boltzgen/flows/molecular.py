"""The all-atom flow: heavy atoms, then hydrogens given them, then positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.folding import Folding
from boltzgen.flows.conditional import TorsionsThenStiff

__all__ = ["GeneratorConfig", "MolecularFlow"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the networks, saved with every model.

    Attributes
    ----------
    torsion_layers, stiff_layers : int
        Circular-spline couplings on the torsions, and affine couplings on the stiff coordinates, for heavy atoms
        and hydrogens each.
    torsion_hidden, stiff_hidden : int
        Width of the two hidden layers of each conditioner.
    n_bins : int
        Bins of each circular spline.
    n_harmonics : int
        Harmonics of the torsions that the conditioners see.
    omega : {"trans", "free"}
        Whether amide torsions are stiff (they stay as in the structure) or free.
    fold_symmetry : bool
        Whether groups that a rotation maps onto themselves (CH3, NH3, carboxylate, phenyl) are generated on a third
        or half of the circle and relabelled at random.
    alignment : float
        For ``coordinates="cartesian"``: strength lambda of the alignment penalty in nm^-2; zero for none. The paper
        says 10, without a unit; 1000 nm^-2 is 10 per square angstrom, which keeps the orientation (10 nm^-2 does not;
        see `boltzgen.energy.alignment`).
    cartesian_rounds, cartesian_hidden : int
        Rounds of four affine couplings of the Cartesian flow, and the width of their sub-networks.
    placement_hidden : int
        For ``hydrogens="network"``: width of the network that places hydrogens.
    """

    torsion_layers: int = 4
    torsion_hidden: int = 64
    stiff_layers: int = 4
    stiff_hidden: int = 96
    n_bins: int = 12
    n_harmonics: int = 3
    omega: str = "trans"
    fold_symmetry: bool = True
    alignment: float = 1000.0
    cartesian_rounds: int = 24
    cartesian_hidden: int = 256
    placement_hidden: int = 512

    def sizes(self) -> dict[str, int]:
        """Keyword arguments of the conditional flows."""
        names = ("torsion_layers", "torsion_hidden", "stiff_layers", "stiff_hidden", "n_bins", "n_harmonics")
        return {name: getattr(self, name) for name in names}


class MolecularFlow(nn.Module):
    """Exact all-atom density ``q(heavy torsions) q(heavy stiff | .) q(hydrogens | heavy)`` on positions.

    Log-densities are with respect to positions in nm modulo rigid motion.

    Parameters
    ----------
    chart : CoordinateChart
    config : GeneratorConfig
    """

    _gather: Tensor
    _scatter: Tensor

    def __init__(self, chart: CoordinateChart, config: GeneratorConfig) -> None:
        super().__init__()
        self.chart = chart
        self.config = config
        self.internal = chart.internal
        self.bounded = chart.bounded()
        self.folding = Folding(chart.symmetry, self.internal.n_atoms)
        groups = [chart.indices(free, hydrogen) for hydrogen in (False, True) for free in (True, False)]
        self._n_torsions = (len(groups[0]), len(groups[2]))
        self._n_stiff = (len(groups[1]), len(groups[3]))
        order = groups[0] + groups[2] + groups[1] + groups[3]
        self.register_buffer("_gather", torch.tensor(order), persistent=False)
        self.register_buffer("_scatter", torch.tensor(order).argsort(), persistent=False)
        pairs = [torch.tensor(chart.stiff_pairs(of_hydrogen)) for of_hydrogen in (False, True)]
        sizes = config.sizes()
        orders = {group.torsion: group.order for group in chart.symmetry}
        folds = [torch.tensor([orders.get(i, 1) for i in torsions]) for torsions in (groups[0], groups[2])]
        self.heavy = TorsionsThenStiff(folds[0], self._n_stiff[0], pairs[0], 0, **sizes)
        self.hydrogens = TorsionsThenStiff(folds[1], self._n_stiff[1], pairs[1], self.heavy.n_features, **sizes)

    @property
    def n_atoms(self) -> int:
        return self.internal.n_atoms

    def sample_and_log_prob(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm, differentiable in the parameters, and their log-density (B,)."""
        coordinates, log_q = self.sample_internal(n_samples, generator)
        positions, log_det = self.internal.to_cartesian(coordinates)
        return self.folding.relabel(positions, generator), log_q - log_det - self.folding.log_order

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,) of positions (B, N, 3) in nm; -inf outside the domain."""
        coordinates, log_det = self.internal.to_internal(self.folding.representative(positions))
        return self.log_prob_internal(coordinates) + log_det - self.folding.log_order

    def sample_internal(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Internal coordinates (B, 3N-6) of representatives, and their log-density (B,)."""
        nothing = self.bounded.centre.new_empty(n_samples, 0)
        torsions, z, log_q = self.heavy.sample(n_samples, nothing, generator)
        given = self.heavy.features(torsions, z)
        more_torsions, more_z, log_q_hydrogens = self.hydrogens.sample(n_samples, given, generator)
        stiff, log_det = self.bounded(torch.cat([z, more_z], dim=-1))
        coordinates = torch.cat([torsions, more_torsions, stiff], dim=-1)[:, self._scatter]
        # A group variable runs once round the circle while its torsion covers the fundamental interval.
        log_q = log_q + log_q_hydrogens - log_det + self.folding.log_order
        return self.folding.torsions(coordinates), log_q

    def log_prob_internal(self, coordinates: Tensor) -> Tensor:
        """Log-density (B,) of internal coordinates (B, 3N-6) of representatives; -inf outside the domain."""
        variables = self.folding.variables(coordinates)[:, self._gather]
        torsions, more_torsions, stiff = variables.split([*self._n_torsions, sum(self._n_stiff)], dim=-1)
        variables, log_det, inside = self.bounded.inverse(stiff)
        z, more_z = variables.split(list(self._n_stiff), dim=-1)
        log_q = self.heavy.log_prob(torsions, z, coordinates.new_empty(len(coordinates), 0))
        log_q = log_q + self.hydrogens.log_prob(more_torsions, more_z, self.heavy.features(torsions, z)) + log_det
        return torch.where(inside, log_q + self.folding.log_order, torch.full_like(log_q, -torch.inf))

    def contains(self, positions: Tensor) -> Tensor:
        """Which configurations (B, N, 3) lie in the domain: (B,) bool."""
        coordinates, _ = self.internal.to_internal(self.folding.representative(positions))
        inside: Tensor = self.bounded.inverse(coordinates[:, self._gather][:, sum(self._n_torsions) :])[2]
        return inside

    def extra_repr(self) -> str:
        heavy, hydrogens = zip(self._n_torsions, self._n_stiff, strict=True)
        return (
            f"heavy: {heavy[0]} torsions + {heavy[1]} stiff; hydrogens: {hydrogens[0]} torsions + {hydrogens[1]} stiff"
        )
