"""Torsions first, stiff coordinates given them, and a way back: the flow of the heavy atoms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from boltzgen.flows.couplings import StiffFlow, TorsionFlow
from boltzgen.flows.networks import angle_rows

__all__ = ["TorsionsThenStiff"]


class TorsionsThenStiff(nn.Module):
    """Free torsions, then the stiff coordinates given them; last, where wanted, the torsions again given these.

    Parameters
    ----------
    folds : (n_torsions,) int tensor
        For each free torsion, how many times its variable goes round while the torsion goes round once: the order
        of a symmetric group, else 1. Later variables are conditioned on the torsion, not on its multiple, because
        the labels of the group are exchanged where the variable closes its circle.
    n_stiff : int
        Stiff coordinates (standardised).
    stiff_pairs : (2, n_pairs) int tensor
        Pairs of stiff coordinates whose conditional covariance is learned.
    n_context : int
        Width of the context that everything is conditioned on (the temperature), or zero.
    way_back : int
        Circular couplings that move the torsions given the stiff coordinates, or zero.
    look : function, optional
        What else the stiff coordinates are conditioned on: (n_looked, B) of the torsions (n_torsions, B).
    n_looked : int
    """

    _folds: Tensor

    def __init__(
        self,
        folds: Tensor,
        n_stiff: int,
        stiff_pairs: Tensor,
        n_context: int,
        *,
        torsion_layers: int,
        torsion_hidden: int,
        n_bins: int,
        n_harmonics: int,
        stiff_layers: int,
        stiff_hidden: int,
        way_back: int = 0,
        look: Callable[[Tensor], Tensor] | None = None,
        n_looked: int = 0,
    ) -> None:
        super().__init__()
        n_torsions = len(folds)
        self.n_harmonics = n_harmonics
        self.register_buffer("_folds", folds.unsqueeze(1), persistent=False)
        self.torsions = TorsionFlow(n_torsions, n_context, torsion_layers, torsion_hidden, n_bins, n_harmonics)
        n_features = 2 * n_harmonics * n_torsions
        self._look = look
        n_given = n_context + n_features + n_looked
        self.stiff = StiffFlow(n_stiff, stiff_pairs, n_given, stiff_layers, stiff_hidden)
        self.back = TorsionFlow(n_torsions, n_context + n_stiff, way_back, torsion_hidden, n_bins, n_harmonics)

    def features(self, torsions: Tensor) -> Tensor:
        """What is conditioned on the torsions (n_torsions, B) sees of them: (2 n_torsions n_harmonics, B)."""
        return angle_rows(torsions / self._folds, self.n_harmonics)

    def draw(
        self, n_samples: int, like: Tensor, generator: torch.Generator | None, heat: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Base variables: uniform angles (n_torsions, B), and normal variables (n_stiff, B) of variance ``heat``."""
        base = self.torsions.sample_base(n_samples, like, generator)
        return base, self.stiff.sample_base(n_samples, like, generator, heat)

    def place(
        self, variables: tuple[Tensor, Tensor], context: Tensor, heat: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Torsions (n_torsions, B), stiff coordinates (n_stiff, B) and their log-density (B,), of base variables."""
        base, z = variables
        torsions, log_det_torsions = self.torsions(base, context)
        stiff, log_det_stiff = self.stiff(z, self._given(torsions, context))
        torsions, log_det_back = self.back(torsions, torch.cat([context, stiff]))
        log_q = self.torsions.log_base(base) + self.stiff.log_base(z, heat) - log_det_torsions - log_det_stiff
        return torsions, stiff, log_q - log_det_back

    def log_prob(self, torsions: Tensor, stiff: Tensor, context: Tensor, heat: Tensor | None = None) -> Tensor:
        """Log-density (B,) of given torsions and stiff coordinates."""
        torsions, log_det_back = self.back.inverse(torsions, torch.cat([context, stiff]))
        base, log_det_torsions = self.torsions.inverse(torsions, context)
        z, log_det_stiff = self.stiff.inverse(stiff, self._given(torsions, context))
        log_det = log_det_torsions + log_det_stiff + log_det_back
        return self.torsions.log_base(base) + self.stiff.log_base(z, heat) + log_det

    def _given(self, torsions: Tensor, context: Tensor) -> Tensor:
        """What the stiff coordinates are conditioned on."""
        looked = [] if self._look is None else [self._look(torsions)]
        return torch.cat([context, self.features(torsions), *looked])
