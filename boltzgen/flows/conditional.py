"""Torsions first, stiff coordinates given them: one block for heavy atoms and, conditioned on those, hydrogens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boltzgen.flows.couplings import StiffFlow, TorsionFlow
from boltzgen.flows.networks import angle_features

__all__ = ["TorsionsThenStiff"]


class TorsionsThenStiff(nn.Module):
    """Free torsions first, then the stiff coordinates given them: the heavy-atom flow and, with a context, the
    hydrogen flow.

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
        Width of the context that everything is conditioned on; zero for heavy atoms.
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
    ) -> None:
        super().__init__()
        n_torsions = len(folds)
        self.n_harmonics = n_harmonics
        self.register_buffer("_folds", folds, persistent=False)
        self.torsions = TorsionFlow(n_torsions, n_context, torsion_layers, torsion_hidden, n_bins, n_harmonics)
        n_features = 2 * n_harmonics * n_torsions
        self.stiff = StiffFlow(n_stiff, stiff_pairs, n_context + n_features, stiff_layers, stiff_hidden)

    @property
    def n_features(self) -> int:
        """Width of `features`."""
        return 2 * self.n_harmonics * self.torsions.n + self.stiff.n

    def features(self, torsions: Tensor, stiff: Tensor) -> Tensor:
        """What a later flow may be conditioned on: (B, n_features)."""
        return torch.cat([angle_features(torsions / self._folds, self.n_harmonics), stiff], dim=-1)

    def sample(
        self, n_samples: int, context: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Torsions (B, n_torsions), stiff coordinates (B, n_stiff) and their log-density (B,)."""
        base = self.torsions.sample_base(n_samples, context, generator)
        torsions, log_det_torsions = self.torsions(base, context)
        z = self.stiff.sample_base(n_samples, context, generator)
        stiff, log_det_stiff = self.stiff(z, self._stiff_context(torsions, context))
        log_q = self.torsions.log_base(base) + self.stiff.log_base(z) - log_det_torsions - log_det_stiff
        return torsions, stiff, log_q

    def log_prob(self, torsions: Tensor, stiff: Tensor, context: Tensor) -> Tensor:
        """Log-density (B,) of given torsions and stiff coordinates."""
        base, log_det_torsions = self.torsions.inverse(torsions, context)
        z, log_det_stiff = self.stiff.inverse(stiff, self._stiff_context(torsions, context))
        return self.torsions.log_base(base) + self.stiff.log_base(z) + log_det_torsions + log_det_stiff

    def _stiff_context(self, torsions: Tensor, context: Tensor) -> Tensor:
        return torch.cat([context, angle_features(torsions / self._folds, self.n_harmonics)], dim=-1)
