"""The all-atom flow: heavy atoms, then hydrogens given them, then positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.folding import Folding
from boltzgen.flows.base import Base
from boltzgen.flows.conditional import TorsionsThenStiff
from boltzgen.flows.hydrogen_groups import find_groups
from boltzgen.flows.hydrogens import LocalHydrogens
from boltzgen.flows.networks import Conditioner
from boltzgen.flows.surroundings import find_surroundings

__all__ = ["Base", "GeneratorConfig", "MolecularFlow"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the networks, saved with every model.

    Attributes
    ----------
    torsion_layers, stiff_layers : int
        Circular-spline couplings on the torsions, and affine couplings on the stiff coordinates, of heavy atoms.
    torsion_hidden, stiff_hidden : int or None
        Width of the two hidden layers of each of their conditioners; None: from the molecule, in proportion to the
        square root of the number of coordinates, and 64 and 96 in small ones.
    way_back : int
        Circular couplings that move the torsions of heavy atoms given their stiff coordinates, after these. Two of them
        took 16 % more time for an ESS of 84.7 % instead of 83.9 % (alanine dipeptide, 9e5 evaluations, one seed): off.
    hydrogen_layers, hydrogen_hidden : int
        Affine couplings within each group of hydrogens, and width of its networks.
    hydrogen_reach : int
        Bonds from a group of hydrogens within which it sees heavy atoms.
    surroundings : int
        Width of what networks make of the surroundings of all heavy atoms in space, which the stiff coordinates see;
        hydrogens see those of their heavy atom as they are. Zero: without. A width of 64 took 40 % more time for an ESS
        of 85.2 % instead of 82.2 % (alanine dipeptide, 9e5 evaluations, one seed); it is for chains that fold back on
        themselves. See `Surroundings`. For internal coordinates only; without effect, and with a warning in the log,
        where no two heavy atoms are more than three bonds apart or a heavy atom is placed by a hydrogen.
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
    temperature_range : (float, float), optional
        Lowest and highest temperature (K) of a generator that knows its temperature; None: it has the molecule's only.
    """

    torsion_layers: int = 4
    torsion_hidden: int | None = None
    stiff_layers: int = 4
    stiff_hidden: int | None = None
    way_back: int = 0
    hydrogen_layers: int = 2
    hydrogen_hidden: int = 64
    hydrogen_reach: int = 3
    surroundings: int = 0
    n_bins: int = 12
    n_harmonics: int = 3
    omega: str = "trans"
    fold_symmetry: bool = True

    alignment: float = 1000.0
    cartesian_rounds: int = 24
    cartesian_hidden: int = 256
    placement_hidden: int = 512
    temperature_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.surroundings, int) or self.surroundings < 0:
            raise ValueError(f"surroundings={self.surroundings!r} is a width: a whole number, or zero for none")
        if self.temperature_range is None:
            return
        low, high = (float(kelvin) for kelvin in self.temperature_range)
        if not 0 < low < high:
            raise ValueError(f"temperature_range={self.temperature_range}: give the lowest and the highest temperature")
        object.__setattr__(self, "temperature_range", (low, high))

    def heavy_sizes(self, n_torsions: int, n_stiff: int) -> dict[str, int]:
        """Keyword arguments of the flow of the heavy atoms."""
        return {
            "torsion_layers": self.torsion_layers,
            "torsion_hidden": self.torsion_hidden or _grown(64, n_torsions, 4),
            "stiff_layers": self.stiff_layers,
            "stiff_hidden": self.stiff_hidden or _grown(96, n_stiff, 24),
            "way_back": self.way_back,
            "n_bins": self.n_bins,
            "n_harmonics": self.n_harmonics,
        }

    def hydrogen_sizes(self) -> dict[str, int]:
        """Keyword arguments of the flow of the hydrogens."""
        return {
            "hidden": self.hydrogen_hidden,
            "layers": self.hydrogen_layers,
            "n_bins": self.n_bins,
            "n_harmonics": self.n_harmonics,
        }


def _grown(width: int, n: int, small: int) -> int:
    """Width for n coordinates, given that for a small number; a multiple of 16."""
    return 16 * round(width / 16 * math.sqrt(max(n / small, 1)))


class MolecularFlow(nn.Module):
    """Exact all-atom density ``q(heavy torsions) q(heavy stiff | .) q(hydrogens | heavy)`` on positions.

    Log-densities are with respect to positions in nm modulo rigid motion. Constrained bonds are constants r0: the
    measure is then ``delta(r - r0) dx``, which is ``prod r^2 sin(theta)`` over all bonds and angles times the
    differentials of the other coordinates, and the density has the unit nm^-(3N - 6 - n_constraints). A
    configuration whose constrained bonds are off by 0.002 nm or more is outside the domain; one that is nearer is
    taken with these bonds at their constants.

    Parameters
    ----------
    chart : CoordinateChart
    config : GeneratorConfig
    """

    _centre: Tensor
    _gather: Tensor
    _scatter: Tensor

    def __init__(self, chart: CoordinateChart, config: GeneratorConfig) -> None:
        super().__init__()
        self.chart = chart
        self.config = config
        self.internal = chart.internal
        self.folding = Folding(chart.symmetry, self.internal.n_atoms)
        groups = [chart.indices(free, hydrogen) for hydrogen in (False, True) for free in (True, False)]
        self._n_torsions = (len(groups[0]), len(groups[2]))
        self._n_stiff = (len(groups[1]), len(groups[3]))
        # Stiff coordinates of hydrogens are whitened group by group.
        self.bounded = chart.bounded().whitened_up_to(self._n_stiff[0])
        self.constrained = chart.constrained_bonds()
        order = groups[0] + groups[2] + groups[1] + groups[3] + self.constrained.columns.tolist()
        centres = torch.tensor([row.centre for row in chart.rows], dtype=torch.get_default_dtype())
        self.register_buffer("_centre", centres, persistent=False)
        self.register_buffer("_gather", torch.tensor(order), persistent=False)
        self.register_buffer("_scatter", torch.tensor(order).argsort(), persistent=False)
        n_context = int(config.temperature_range is not None)
        orders = {group.torsion: group.order for group in chart.symmetry}
        folds = [torch.tensor([orders.get(i, 1) for i in torsions]) for torsions in (groups[0], groups[2])]
        self.surroundings = find_surroundings(chart) if config.surroundings else None
        n_looked = 0 if self.surroundings is None else config.surroundings
        if self.surroundings is not None:
            self.embedding = Conditioner(self.surroundings.n_features, 2 * n_looked, n_looked, n_layers=1, zero=False)
        pairs = torch.tensor(chart.stiff_pairs(of_hydrogen=False))
        n_heavy = (len(groups[0]), len(groups[1]))
        sizes = config.heavy_sizes(*n_heavy)
        look = self._look if n_looked else None
        self.heavy = TorsionsThenStiff(folds[0], n_heavy[1], pairs, n_context, look=look, n_looked=n_looked, **sizes)
        self.hydrogens = LocalHydrogens(
            find_groups(chart, config.hydrogen_reach),
            folds[1],
            self._n_stiff[1],
            n_context,
            n_heavy,
            around=None if self.surroundings is None else self.surroundings.rows(),
            **config.hydrogen_sizes(),
        )

    @property
    def n_atoms(self) -> int:
        return self.internal.n_atoms

    def sample_and_log_prob(
        self, n_samples: int, generator: torch.Generator | None = None, heat: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm, differentiable in the parameters, and their log-density (B,).

        Parameters
        ----------
        heat : float or (B,) tensor, optional
            Temperature over that of the molecule, of a flow with a temperature range; one if absent.

        Raises
        ------
        ValueError
            If a heat is given to a flow that has no temperature range.
        """
        return self.place(self.draw(n_samples, generator, heat), heat)

    def draw(
        self, n_samples: int, generator: torch.Generator | None = None, heat: Tensor | float | None = None
    ) -> Base:
        """The random numbers that `place` makes configurations of, the batch last."""
        like = self.bounded.centre
        _, heat = self._temperature(n_samples, heat)
        return Base(
            *self.heavy.draw(n_samples, like, generator, heat),
            *self.hydrogens.draw(n_samples, like, generator, heat),
            self.folding.draw(n_samples, generator),
        )

    def place(self, base: Base, heat: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm, and their log-density (B,), of what `draw` gives: no random numbers in here."""
        coordinates, log_q = self.place_internal(base, heat)
        positions, log_det = self.internal.to_cartesian(coordinates)
        return self.folding.relabel(positions, base.labels), log_q - log_det - self.folding.log_order

    def log_prob(self, positions: Tensor, heat: Tensor | float | None = None) -> Tensor:
        """Log-density (B,) of positions (B, N, 3) in nm; -inf outside the domain."""
        coordinates, held = self._read(positions)
        log_q = self.log_prob_internal(coordinates, heat) - self.internal.log_volume(coordinates)
        return torch.where(held, log_q - self.folding.log_order, torch.full_like(log_q, -torch.inf))

    def sample_internal(
        self, n_samples: int, generator: torch.Generator | None = None, heat: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Internal coordinates (B, 3N-6) of representatives, and their log-density (B,)."""
        return self.place_internal(self.draw(n_samples, generator, heat), heat)

    def place_internal(self, base: Base, heat: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """`sample_internal` of what `draw` gives."""
        context, heat = self._temperature(base.stiff.shape[1], heat)
        torsions, z, log_q = self.heavy.place((base.torsions, base.stiff), context, heat)
        given = self._given_to_hydrogens(torsions, z, context)
        of_hydrogens = (base.hydrogen_torsions, base.hydrogen_stiff)
        more_torsions, more_stiff, log_q_hydrogens = self.hydrogens.place(of_hydrogens, given, heat)
        stiff, log_det = self.bounded(torch.cat([z, more_stiff]).T)
        variables = [torch.cat([torsions, more_torsions]).T, stiff, self.constrained.values(stiff)]
        coordinates = torch.cat(variables, dim=-1)[:, self._scatter]
        # A group variable runs once round the circle while its torsion covers the fundamental interval.
        log_q = log_q + log_q_hydrogens - log_det + self.folding.log_order
        return self.folding.torsions(coordinates), log_q

    def log_prob_internal(self, coordinates: Tensor, heat: Tensor | float | None = None) -> Tensor:
        """Log-density (B,) of internal coordinates (B, 3N-6) of representatives; -inf outside the domain.

        Constrained bonds are passed over: they are taken to be at their constants.
        """
        context, heat = self._temperature(len(coordinates), heat)
        variables = self.folding.variables(coordinates)[:, self._gather]
        free, stiff, _ = variables.split([sum(self._n_torsions), sum(self._n_stiff), len(self.constrained)], dim=-1)
        stiff, log_det, inside = self.bounded.inverse(stiff)
        # Inside the flows the batch stands last.
        torsions, more_torsions = free.T.contiguous().split(list(self._n_torsions))
        z, more_stiff = stiff.T.contiguous().split(list(self._n_stiff))
        log_q = self.heavy.log_prob(torsions, z, context, heat)
        given = self._given_to_hydrogens(torsions, z, context)
        log_q = log_q + self.hydrogens.log_prob(more_torsions, more_stiff, given, heat) + log_det
        return torch.where(inside, log_q + self.folding.log_order, torch.full_like(log_q, -torch.inf))

    def _given_to_hydrogens(self, torsions: Tensor, z: Tensor, context: Tensor) -> Tensor:
        """What hydrogens may see: stiff coordinates themselves, for their whitened variables mix the whole chain."""
        rows = [context, self.heavy.features(torsions), self.bounded.factor @ z]
        if self.surroundings is not None:
            rows.append(self.surroundings(self._heavy_coordinates(torsions, z)))
        return torch.cat(rows)

    def _look(self, torsions: Tensor) -> Tensor:
        """What stiff coordinates see of the surroundings, which are built of torsions with stiff ones at the centre."""
        assert self.surroundings is not None
        return self.embedding(self.surroundings(self._heavy_coordinates(torsions)))

    def _heavy_coordinates(self, torsions: Tensor, z: Tensor | None = None) -> Tensor:
        """Internal coordinates (B, 3N-6) with those of hydrogens, and stiff ones if not given, at their centres."""
        n_torsions, n_stiff = self._n_torsions[0], self._n_stiff[0]
        columns, values = self._gather[:n_torsions], torsions
        if z is not None:
            start = sum(self._n_torsions)
            columns = torch.cat([columns, self._gather[start : start + n_stiff]])
            values = torch.cat([torsions, self.bounded.leading(z.T).T])
        return self.folding.torsions(self._centre.expand(torsions.shape[1], -1).index_copy(1, columns, values.T))

    def _temperature(self, n: int, heat: Tensor | float | None) -> tuple[Tensor, Tensor | None]:
        """Context (n_context, B), and heat (B,) where the flow knows its temperature."""
        like = self.bounded.centre
        if self.config.temperature_range is None:
            if heat is not None:
                raise ValueError(
                    "this generator has one temperature: build it with GeneratorConfig(temperature_range=(300, 1200))"
                )
            return like.new_empty(0, n), None
        heat = torch.as_tensor(1.0 if heat is None else heat, dtype=like.dtype, device=like.device).expand(n)
        return (1 / heat - 1).unsqueeze(0), heat

    def contains(self, positions: Tensor) -> Tensor:
        """Which configurations (B, N, 3) lie in the domain: (B,) bool."""
        coordinates, held = self._read(positions)
        stiff = self._gather[sum(self._n_torsions) :][: sum(self._n_stiff)]
        inside: Tensor = self.bounded.inverse(coordinates[:, stiff])[2]
        return inside & held

    def _read(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates of representatives with constrained bonds at their constants; which rows have them."""
        coordinates, _ = self.internal.to_internal(self.folding.representative(positions))
        return self.constrained.pin(coordinates)

    def extra_repr(self) -> str:
        heavy, hydrogens = zip(self._n_torsions, self._n_stiff, strict=True)
        text = (
            f"heavy: {heavy[0]} torsions + {heavy[1]} stiff; hydrogens: {hydrogens[0]} torsions + {hydrogens[1]} stiff"
        )
        return text + (f"; {len(self.constrained)} constrained bonds" if len(self.constrained) else "")
