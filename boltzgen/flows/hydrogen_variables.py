"""Unconstrained variables of the hydrogens, given the heavy atoms: a flow, a network and a minimiser work on these."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boltzgen.coordinates.bounded import bend, unbend
from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.constrained import ConstrainedBonds
from boltzgen.coordinates.hydrogens import HeavyFeatures, HydrogenCoordinates
from boltzgen.flows.networks import angle_features

__all__ = ["HydrogenVariables"]


class HydrogenVariables(nn.Module):
    """Hydrogens by free torsions and whitened stiff variables, relative to given heavy atoms.

    Zero stiff variables and torsions at their centres are the energy minimum in the harmonic approximation: with the
    chart's factor in blocks, heavy atoms first, stiff coordinates deviate by ``L_hc z_c + L_hh z_h``, and the first
    term is the mean of the hydrogens given the heavy atoms.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.

    Attributes
    ----------
    n_torsions, n_stiff : int
        Free torsions and stiff coordinates of the hydrogens.
    constrained : ConstrainedBonds
        Bonds to hydrogens that no variable moves, by their columns among the coordinates of the hydrogens.
    torsion_centres : (n_torsions,) tensor
        Free torsions in the minimised structure, rad.
    """

    torsion_centres: Tensor
    _gather: Tensor
    _scatter: Tensor

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        self.coordinates = HydrogenCoordinates(chart)
        self.features = HeavyFeatures(chart)
        self.bounded = chart.bounded()
        column = {index: k for k, index in enumerate(self.coordinates.columns.tolist())}
        torsions, stiff = chart.indices(True, True), chart.indices(False, True)
        self.n_torsions, self.n_stiff = len(torsions), len(stiff)
        fixed = chart.constrained(True)
        self.constrained = ConstrainedBonds([column[i] for i in fixed], [chart.rows[i].centre for i in fixed])
        order = torch.tensor([column[i] for i in torsions + stiff + fixed], dtype=torch.long)
        self.register_buffer("_gather", order, persistent=False)
        self.register_buffer("_scatter", order.argsort(), persistent=False)
        centres = torch.tensor([chart.rows[i].centre for i in torsions], dtype=torch.get_default_dtype())
        self.register_buffer("torsion_centres", centres)

    def context(self, heavy: Tensor, n_harmonics: int) -> tuple[Tensor, Tensor]:
        """Inputs of a network (B, F), and whitened stiff coordinates (B, n), of heavy atoms (B, n_heavy, 3)."""
        torsions, z = self.features(heavy)
        return torch.cat([angle_features(torsions, n_harmonics), z], dim=1), z

    def n_context(self, n_harmonics: int) -> int:
        """Width F of the inputs from `context`."""
        return 2 * n_harmonics * self.features.n_torsions + self.features.n_stiff

    def to_coordinates(self, torsions: Tensor, z: Tensor, heavy_z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coordinates (B, 3 n_H) for `HydrogenCoordinates`, and log |d coordinates / d (torsions, z)| (B,).

        Without heavy_z, z are deviations of the stiff coordinates in widths.
        """
        shift, factor, centre, width, limit = self._parts(heavy_z)
        bent, log_derivative = bend(shift + z @ factor.T, limit / width)
        log_det = log_derivative.sum(1) + width.log().sum() + factor.diagonal().log().sum()
        coordinates = torch.cat([torsions, centre + width * bent, self.constrained.values(torsions)], dim=1)
        return coordinates[:, self._scatter], log_det

    def to_variables(self, coordinates: Tensor, heavy_z: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inverse: torsions, z, its log-determinant (B,), and which rows lie within the bounds, (B,) bool.

        Constrained bonds are passed over.
        """
        shift, factor, _, width, limit = self._parts(heavy_z)
        moving = self._gather[: self.n_torsions + self.n_stiff]
        torsions, stiff = coordinates[:, moving].tensor_split([self.n_torsions], dim=1)
        n_heavy = self.features.n_stiff
        padded = torch.cat([self.bounded.centre[:n_heavy].expand(len(stiff), -1), stiff], dim=1)
        deviation = self.bounded.deviations(padded)[:, n_heavy:]
        inside = (deviation.abs() < limit).all(1)
        # A row outside has no preimage; its centre stands in so that no infinity enters a gradient.
        deviation = torch.where(inside.unsqueeze(1), deviation, torch.zeros_like(deviation))
        y, log_derivative = unbend(deviation / width, limit / width)
        z = torch.linalg.solve_triangular(factor, (y - shift).T, upper=False).T
        log_det = log_derivative.sum(1) - width.log().sum() - factor.diagonal().log().sum()
        return torsions, z, log_det, inside

    def _parts(self, heavy_z: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean of the hydrogens given the heavy atoms (in widths), own factor, centre, width and limit."""
        n, bounded = self.features.n_stiff, self.bounded
        rest = bounded.centre[n:], bounded.width[n:], bounded.limit[n:]
        if heavy_z is None:
            return torch.zeros_like(rest[0]), torch.eye(self.n_stiff).to(rest[0]), *rest
        return heavy_z @ bounded.factor[n:, :n].T, bounded.factor[n:, n:], *rest

    def extra_repr(self) -> str:
        return f"{self.n_torsions} torsions + {self.n_stiff} stiff"
