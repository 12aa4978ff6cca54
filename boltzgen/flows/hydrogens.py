"""Hydrogens group by group, each given the heavy atoms and the earlier hydrogens around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from boltzgen.flows.couplings import log_normal
from boltzgen.flows.hydrogen_groups import HydrogenGroup
from boltzgen.flows.hydrogen_layout import HydrogenLayout
from boltzgen.flows.networks import GroupedConditioner, bounded_log_scale
from boltzgen.flows.splines import circular_spline, circular_spline_inverse, n_spline_parameters

__all__ = ["LocalHydrogens"]


class LocalHydrogens(nn.Module):
    """Exact density of all hydrogens given the heavy atoms: a product over groups.

    A group holds the hydrogens of one heavy atom: at most one free torsion, and stiff coordinates. Its torsion is a
    circular spline of a uniform variable; its stiff coordinates are, given the torsion, an affine map of normal
    variables with full covariance, after couplings between their halves. Every parameter comes from networks of the
    group's own that see what lies within a fixed number of bonds (see `find_groups`), so a group costs the same in a
    chain of any length. Densities of all groups are found at once, in batched products; samples level by level.

    Untrained, stiff coordinates follow the harmonic approximation given those that the group sees.

    Variables are (D, B), the batch last. Stiff coordinates are deviations from their centres in widths.

    Parameters
    ----------
    groups : sequence of HydrogenGroup
    folds : (n_torsions,) int tensor
        Order of the symmetric group of each hydrogen torsion, or one: see `TorsionsThenStiff`.
    n_stiff : int
    n_context : int
        Rows of the context that every group sees (the temperature), or zero.
    n_heavy : (int, int)
        Free torsions and stiff coordinates of heavy atoms.
    hidden, layers : int
        Width of the networks, and couplings in each group.
    n_bins, n_harmonics : int
    around : mapping of int to range, optional
        Which rows of what is given of the surroundings each heavy atom's group sees; see `Surroundings`.
    """

    def __init__(
        self,
        groups: Sequence[HydrogenGroup],
        folds: Tensor,
        n_stiff: int,
        n_context: int,
        n_heavy: tuple[int, int],
        *,
        hidden: int,
        layers: int,
        n_bins: int,
        n_harmonics: int,
        around: Mapping[int, range] | None = None,
    ) -> None:
        super().__init__()
        self.n_torsions, self.n_stiff, self.n_harmonics = len(folds), n_stiff, n_harmonics
        layout = HydrogenLayout(groups, folds, n_stiff, n_context, n_heavy, n_harmonics, around or {})
        self.layout = layout
        width, half = layout.width, layout.n_first
        n_groups, n_seen = len(groups), layout.n_seen
        turning = [n for n, group in zip(n_seen, groups, strict=True) if group.torsion is not None]
        self.torsion_network = GroupedConditioner(turning, [hidden, hidden, n_spline_parameters(n_bins)])
        own = 2 * n_harmonics
        self.trunk = GroupedConditioner([n + own for n in n_seen], [hidden, hidden], zero=False)
        self.normal = GroupedConditioner([hidden] * n_groups, [2 * width + width * (width - 1) // 2])
        kept = [(half, width - half)[k % 2] for k in range(layers if width > 1 else 0)]
        self.couplings = nn.ModuleList(
            GroupedConditioner([hidden + n] * n_groups, [hidden // 2, 2 * (width - n)]) for n in kept
        )

    def sample(
        self, heavy: Tensor, generator: torch.Generator | None, heat: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`place` of fresh base variables."""
        return self.place(self.draw(heavy.shape[1], heavy, generator, heat), heavy, heat)

    def draw(
        self, n_samples: int, like: Tensor, generator: torch.Generator | None, heat: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Base variables: uniform angles (n_torsions, B), and normal variables (n_stiff, B) of variance ``heat``."""
        uniform = torch.rand(self.n_torsions, n_samples, device=like.device, dtype=like.dtype, generator=generator)
        z = torch.randn(self.n_stiff, n_samples, device=like.device, dtype=like.dtype, generator=generator)
        return (2 * uniform - 1) * math.pi, z if heat is None else z * heat.sqrt()

    def place(
        self, base: tuple[Tensor, Tensor], heavy: Tensor, heat: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Torsions (n_torsions, B), stiff coordinates (n_stiff, B) and their log-density (B,), given heavy atoms.

        Parameters
        ----------
        base : (Tensor, Tensor)
            What `draw` gives.
        heavy : (n_context + n_features, B) tensor
            Context, features of the heavy torsions, stiff heavy-atom coordinates, and surroundings.
        heat : (B,) tensor, optional
            Variance of the base of the stiff coordinates; one if absent.
        """
        uniform, z = base
        torsions, stiff, log_det = self(uniform, z, heavy)
        return torsions, stiff, log_normal(z, heat) - self.n_torsions * math.log(2 * math.pi) - log_det

    def forward(self, base: Tensor, z: Tensor, heavy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Torsions, stiff coordinates and log |det| (B,) of base variables (n_torsions, B) and (n_stiff, B)."""
        layout = self.layout
        table = layout.table(heavy, torch.zeros_like(base), torch.zeros_like(z))
        z = layout.padded(z)
        torsions, stiff = torch.zeros_like(base), torch.zeros_like(z)
        log_det = layout.log_factor().expand(heavy.shape[1])
        for number, level in enumerate(layout.levels()):
            if len(level.torsions):
                parameters = self.torsion_network(table[level.torsion_inputs], level.turning)
                turned, log_derivative = circular_spline(base[level.torsions], parameters)
                torsions = torsions.index_copy(0, level.torsions, turned)
                table = layout.with_torsions(table, level.torsions, turned)
                log_det = log_det + log_derivative.sum(0)
            values, change = self._stiff_of(z[level.groups], table[level.inputs], level.groups)
            stiff = stiff.index_copy(0, level.groups, values)
            table = layout.with_stiff(table, number, values)
            log_det = log_det + change
        return torsions, layout.flat(stiff), log_det

    def log_prob(self, torsions: Tensor, stiff: Tensor, heavy: Tensor, heat: Tensor | None = None) -> Tensor:
        """Log-density (B,) of torsions and stiff coordinates given heavy atoms."""
        _, z, log_det = self.inverse(torsions, stiff, heavy)
        return log_normal(z, heat) - self.n_torsions * math.log(2 * math.pi) + log_det

    def inverse(self, torsions: Tensor, stiff: Tensor, heavy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Base variables, and log |det| (B,) of this direction: all groups at once, for what each sees is known."""
        layout = self.layout
        if not self.n_stiff:  # no hydrogens: their coordinates come in groups that each have a bond
            return torsions, stiff, heavy.new_zeros(heavy.shape[1])
        table = layout.table(heavy, torsions, stiff)
        base, log_det = torsions, -layout.log_factor()
        if self.n_torsions:
            parameters = self.torsion_network(table[layout.torsion_inputs])
            turned, log_derivative = circular_spline_inverse(torsions[layout.torsions], parameters)
            base = torsions.index_copy(0, layout.torsions, turned)
            log_det = log_det + log_derivative.sum(0)
        seen = table[layout.inputs]
        hidden, mean, log_scale, below = self._conditioned(seen)
        values = layout.padded(stiff) - torch.bmm(layout.regression, seen)
        values = torch.linalg.solve_triangular(layout.factor, values, upper=False)
        deviation = values - mean
        values = log_scale.exp() * deviation + layout.row_sum @ (below * deviation[:, layout.columns])
        z, change = self._couple(values, hidden, inverse=True)
        return base, layout.flat(z), log_det + log_scale.sum((0, 1)) + change

    def _stiff_of(self, z: Tensor, seen: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Stiff coordinates (n, width, B) of some groups from base variables, and log |det| without the factors."""
        hidden, mean, log_scale, below = self._conditioned(seen, groups)
        values, log_det = self._couple(z, hidden, groups)
        values = mean + _solve(log_scale, below, values, self.layout.entries)
        values = torch.bmm(self.layout.factor[groups], values) + torch.bmm(self.layout.regression[groups], seen)
        return values, log_det - log_scale.sum((0, 1))

    def _conditioned(self, seen: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden features of each group; mean, log scale and lower entries of its normal distribution."""
        hidden = nn.functional.silu(self.trunk(seen, groups))
        present, width = self.layout.present_parameters, self.layout.width
        parameters = self.normal(hidden, groups) * (present if groups is None else present[groups])
        mean, raw_scale, below = parameters.split([width, width, parameters.shape[1] - 2 * width], dim=1)
        return hidden, mean, bounded_log_scale(raw_scale), below

    def _couple(
        self, values: Tensor, hidden: Tensor, groups: Tensor | None = None, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Affine couplings between the halves of (n, width, B) values, and their log |det| (B,)."""
        half, present = self.layout.n_first, self.layout.present
        present = present if groups is None else present[groups]
        log_det = values.new_zeros(values.shape[-1])
        halves = [values[:, :half], values[:, half:]]
        shown = [present[:, :half], present[:, half:]]
        for k in reversed(range(len(self.couplings))) if inverse else range(len(self.couplings)):
            kept, moved = k % 2, 1 - k % 2
            raw = self.couplings[k](torch.cat([hidden, halves[kept]], dim=1), groups)
            raw_scale, shift = raw.unflatten(1, (2, -1)).unbind(1)
            log_scale, shift = bounded_log_scale(raw_scale) * shown[moved], shift * shown[moved]
            if inverse:
                halves[moved] = (halves[moved] - shift) * torch.exp(-log_scale)
            else:
                halves[moved] = halves[moved] * log_scale.exp() + shift
            log_det = log_det + log_scale.sum((0, 1))
        return torch.cat(halves, dim=1), -log_det if inverse else log_det


def _solve(log_scale: Tensor, below: Tensor, right: Tensor, entries: Tensor) -> Tensor:
    """Solutions (n, width, B) of small lower triangular systems, one for each group and sample.

    Parameters
    ----------
    log_scale : (n, width, B) tensor
        Logarithms of the diagonal.
    below : (n, n_entries, B) tensor
        The entries below the diagonal.
    right : (n, width, B) tensor
    entries : (width, width) int tensor
        The number of each entry.
    """
    inverse = torch.exp(-log_scale)
    solution = right * inverse
    if not below.shape[1]:
        return solution
    steps = -below[:, entries] * inverse.unsqueeze(2)
    for column in range(right.shape[1] - 1):
        rest = solution[:, column + 1 :] + steps[:, column + 1 :, column] * solution[:, column : column + 1]
        solution = torch.cat([solution[:, : column + 1], rest], dim=1)
    return solution
