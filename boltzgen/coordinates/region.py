"""The region that a chart covers, for flows that can leave it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.folding import Folding

__all__ = ["Region"]


class Region(nn.Module):
    """Configurations that a generator of internal coordinates on this chart can reach, up to symmetric labels.

    Chirality, cis or trans at stiff torsions, labels that only an inversion exchanges, and bounds on bonds and angles
    are those of the chart; see `CoordinateChart.domain`.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    """

    _stiff: Tensor

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        self.internal = chart.internal
        self.folding = Folding(chart.symmetry, chart.internal.n_atoms)
        self.bounded, self.constrained = chart.bounded(), chart.constrained_bonds()
        stiff = chart.indices(False, False) + chart.indices(False, True)
        self.register_buffer("_stiff", torch.tensor(stiff, dtype=torch.long), persistent=False)

    def contains(self, positions: Tensor) -> Tensor:
        """Which configurations (B, N, 3) in nm lie in the region: (B,) bool; those with a NaN do not."""
        with torch.no_grad():
            coordinates, _ = self.internal.to_internal(self.folding.representative(positions))
            coordinates, held = self.constrained.pin(coordinates)
            deviations = self.bounded.deviations(coordinates[:, self._stiff])
            inside: Tensor = (deviations.abs() < self.bounded.limit).all(dim=1)
            return inside & held
