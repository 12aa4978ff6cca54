"""Energies whose terms go on linearly where their gradient would exceed a threshold: for losses, never for weights.

Felardos, Hénin and Charpiat (2022), section 3.2, cap each term of the energy on its own, so that no single term's
gradient exceeds a threshold G (kJ/mol/nm). Here no term pulls any atom harder than G:

- A stretch, or an atom pair with Lennard-Jones, Coulomb and custom pair functions together, is exact between the
  distances at which its slope reaches G, and linear beyond. (Capped apart, attraction could win at short range.)
- A bend or an improper is exact while its slope stays below a share of G times its lever arm, and linear in the angle
  beyond. The share leaves room for the force along the arms, on which the threshold depends.
- A torsion or a map, whose slope is bounded, shrinks in proportion to the lever arm once that is so short that its
  force could exceed G.

Generalized Born energies, and custom terms other than functions of one distance, stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.born import BornTerms
from boltzgen.energy.custom import CustomBonded, CustomPairTerms, pair_distances
from boltzgen.energy.geometry import cross, dihedral, dot
from boltzgen.energy.pairs import PairTerms, squared_distances
from boltzgen.energy.program import TermProgram
from boltzgen.energy.tables import MAX_PERIODICITY, Floats, TermTables
from boltzgen.energy.terms import bicubic_coefficients
from boltzgen.energy.walls import Walls, find_walls
from boltzgen.errors import PotentialError

__all__ = ["CappedPotential"]

# With a slope of at most T = share G a, where a is the shorter arm of a bend, an atom at an end feels T/a across the
# arm and, since T depends on a, share G pi along it; the central atom feels both arms.
_ANGLE_SHARE = float(1 / (1 + np.hypot(1, np.pi)))
# The lever arm of a dihedral, min(|b1 x b2|, |b2 x b3|) / (|b1| + |b2| + |b3|): its inverse bounds the gradient of the
# dihedral by atom, and moving one atom changes it by at most this much of the way.
_LEVER_SLOPE = 1.5
_IMPROPER_SHARE = float(1 / (1 + _LEVER_SLOPE * np.pi))


class CappedPotential(BatchedPotential):
    """The energy of a System with every term capped; see the module for what that means.

    Made by `CompiledPotential.capped`. For losses only: importance weights need the raw energy.

    Parameters
    ----------
    tables : TermTables
        All terms.
    n_atoms : int
        Number of atoms N.
    max_gradient : float
        Largest force of one term on one atom, kJ/mol/nm.
    name_of : function
        Names of atoms, for messages.
    chunk : int
        Configurations evaluated at a time.

    Raises
    ------
    PotentialError
        The threshold is not positive, or is exceeded by an attraction outside of a repulsive wall.
    """

    name = "capped"

    def __init__(
        self, tables: TermTables, n_atoms: int, max_gradient: float, name_of: Callable[[int], str], chunk: int
    ) -> None:
        super().__init__(n_atoms)
        if not max_gradient > 0:
            raise PotentialError(f"max_gradient must be positive, in kJ/mol/nm, not {max_gradient}")
        self.max_gradient = float(max_gradient)
        self._chunk = chunk
        self._terms = _CappedTerms(tables, n_atoms, self.max_gradient, name_of)
        self._placed: dict[tuple[torch.device, torch.dtype], _CappedTerms] = {}

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Capped energy by kind of term, {kind: (B,) tensor in kJ/mol}."""
        self._check(positions)
        self.counts.add(energy=len(positions))
        with torch.no_grad():
            energies = self._module(positions).interactions(positions.detach().permute(2, 1, 0).contiguous())
        return {kind: value.sum(0) for kind, value in energies.items()}

    def report(self) -> str:
        """Threshold, what stays uncapped, and the counts."""
        lines = [
            f"Capped potential: no term pulls an atom harder than {self.max_gradient:g} kJ/mol/nm; for losses only"
        ]
        if self._terms.uncapped:
            lines.append(f"Not capped: {', '.join(self._terms.uncapped)}")
        return "\n".join([*lines, f"Counts: {self.counts}"])

    def _module(self, positions: Tensor) -> _CappedTerms:
        key = (positions.device, positions.dtype)
        if key not in self._placed:
            self._placed[key] = copy.deepcopy(self._terms).to(device=key[0], dtype=key[1])
        return self._placed[key]

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        module = self._module(positions)
        energy = positions.new_empty(len(positions))
        force = torch.zeros_like(positions) if forces else None
        for start in range(0, len(positions), self._chunk):
            rows = slice(start, start + self._chunk)
            with torch.set_grad_enabled(forces):
                x = positions[rows].permute(2, 1, 0).contiguous().requires_grad_(forces)
                part = torch.stack([value.sum(0) for value in module.interactions(x).values()]).sum(0)
            energy[rows] = part.detach()
            if force is not None:
                (gradient,) = torch.autograd.grad(part, x, torch.ones_like(part))
                force[rows] = -gradient.permute(2, 1, 0)
        return RawEvaluation(energy, force)


class _Line(nn.Module):
    """A function of distance, replaced by straight lines beyond its walls."""

    shortest: Tensor
    longest: Tensor
    short_energy: Tensor
    short_slope: Tensor
    long_energy: Tensor
    long_slope: Tensor

    def __init__(self, walls: Walls) -> None:
        super().__init__()
        for name in ("shortest", "longest", "short_energy", "short_slope", "long_energy", "long_slope"):
            self.register_buffer(name, getattr(walls, name), persistent=False)

    def forward(self, energy: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(r, self.shortest), self.longest)
        value = energy(inside)
        value = torch.where(r < self.shortest, self.short_energy + self.short_slope * (r - self.shortest), value)
        beyond = torch.where(r > self.longest, r - inside, torch.zeros_like(r))
        return torch.where(r > self.longest, self.long_energy + self.long_slope * beyond, value)


class _CappedTerms(nn.Module):
    """Capped energies of (3, N, B) coordinates, differentiable by autograd."""

    torsion_lever: Tensor
    map_lever: Tensor

    def __init__(self, tables: TermTables, n_atoms: int, limit: float, name_of: Callable[[int], str]) -> None:
        super().__init__()
        self.limit = limit
        self.program = TermProgram(tables, n_atoms)
        self._custom = [part for part in self.program.custom if isinstance(part, CustomBonded)]
        self.stretches = [_is_stretch(part) for part in self._custom]
        self.uncapped = [
            repr(terms.expression.text) for terms, s in zip(tables.custom, self.stretches, strict=True) if not s
        ] + ["generalized Born"] * bool(tables.born)
        radial = [_custom_radial(p) if s else None for p, s in zip(self._custom, self.stretches, strict=True)]
        self.custom_lines = nn.ModuleList()
        for part, function in zip(self._custom, radial, strict=True):
            if function is not None:
                walls = find_walls(function, limit)
                _check_attraction(walls, torch.stack((part.head, part.tail), dim=1).numpy(), limit, name_of)
                self.custom_lines.append(_Line(walls))
        if self._pair_parts():
            walls = find_walls(self._radial, limit)
            _check_attraction(walls, np.argwhere(np.ones((n_atoms, n_atoms))), limit, name_of)
            self.pair_line = _Line(walls)
        levers = torch.from_numpy(_torsion_bounds(tables)[:, None] / limit)
        self.register_buffer("torsion_lever", levers, persistent=False)
        bounds = np.array([_map_bound(energy) for energy in tables.cmap_energies] or [0.0])
        levers = torch.from_numpy(bounds[tables.cmap_index][:, None] / limit)
        self.register_buffer("map_lever", levers, persistent=False)

    def interactions(self, x: Tensor) -> dict[str, Tensor]:
        """Energy of every term, {kind: (n, B) in kJ/mol}; generalized Born by atom."""
        bonded = self.program.bonded
        d = x.index_select(1, bonded.head) - x.index_select(1, bonded.tail)
        stretch, u, v, *vectors = torch.split(d, bonded.sizes, dim=1)
        b = [torch.cat((vectors[k], vectors[k + 3]), dim=1) for k in range(3)]
        energies = {"bonds": self._bonds(stretch), "angles": self._angles(u, v), **self._dihedrals(*b)}
        lines = iter(self.custom_lines)
        for k, (part, stretches) in enumerate(zip(self._custom, self.stretches, strict=True)):
            energies[f"custom {k + 1}"] = _along(part, next(lines), x) if stretches else part.interactions(x)
        if self._pair_parts():
            _, r = pair_distances(x)
            square = self.pair_line(lambda inside: self._radial(inside)[0], r)
            energies["pairs"] = 0.5 * square.flatten(0, 1)
        for k, born in enumerate(p for p in self.program.over_pairs if isinstance(p, BornTerms)):
            energies[f"generalized Born {k + 1}"] = born.by_atom(x)
        return energies

    def _pair_parts(self) -> list[PairTerms | CustomPairTerms]:
        return [part for part in self.program.over_pairs if isinstance(part, PairTerms | CustomPairTerms)]

    def _radial(self, r: Tensor) -> tuple[Tensor, Tensor]:
        parts = [part.radial(r) for part in self._pair_parts()]
        return sum(e for e, _ in parts), sum(s for _, s in parts)  # type: ignore[return-value]

    def _bonds(self, d: Tensor) -> Tensor:
        k, r0 = self.program.bonded.bond
        return _huber(_length(d) - r0, k, self.limit)

    def _angles(self, u: Tensor, v: Tensor) -> Tensor:
        k, theta0 = self.program.bonded.angle
        arm = torch.minimum(_length(u), _length(v))
        theta = torch.atan2(_length(cross(u, v)), dot(u, v))
        return _huber(theta - theta0, k, _ANGLE_SHARE * self.limit * arm)

    def _dihedrals(self, b1: Tensor, b2: Tensor, b3: Tensor) -> dict[str, Tensor]:
        bonded, dtype = self.program.bonded, b1.dtype
        # Of nearly collinear atoms float32 leaves products of lengths without digits, and so forces without bounds.
        b1, b2, b3 = b1.double(), b2.double(), b3.double()
        cosine, sine, m, n, _ = dihedral(b1, b2, b3)
        lever = torch.minimum(_length(m), _length(n)) / (_length(b1) + _length(b2) + _length(b3))
        first, last = bonded.n_torsions, bonded.n_torsions + bonded.n_impropers
        energies: dict[str, Tensor] = {}
        if bonded.n_torsions:
            value, _ = bonded.torsion_energy(cosine[:first], sine[:first], False)
            energies["torsions"] = value * _ramp(lever[:first], self.torsion_lever)
        if bonded.n_impropers:
            k, theta0 = bonded.improper
            excess = torch.atan2(sine[first:last], cosine[first:last]) - theta0
            excess = excess - (2 * np.pi) * torch.round(excess / (2 * np.pi))
            energies["impropers"] = _huber(excess, 2 * k, _IMPROPER_SHARE * self.limit * lever[first:last])
        if bonded.n_cmaps:
            value, _ = bonded.cmap_energy(cosine[last:], sine[last:], False)
            both = _ramp(lever[last:].unflatten(0, (2, bonded.n_cmaps)), self.map_lever)
            energies["cmaps"] = value * both[0] * both[1]
        return {kind: value.to(dtype) for kind, value in energies.items()}


def _length(v: Tensor) -> Tensor:
    return torch.sqrt(squared_distances(v))


def _huber(excess: Tensor, k: Tensor, limit: Tensor | float) -> Tensor:
    """k/2 excess^2 while its slope is below the limit, linear beyond."""
    stiff = k.clamp(min=1e-6)
    bound = limit / stiff
    size = excess.abs()
    inside = torch.minimum(size, bound if isinstance(bound, Tensor) else torch.as_tensor(bound))
    return k * inside * (size - 0.5 * inside)


def _ramp(lever: Tensor, full: Tensor) -> Tensor:
    """1 for levers of at least `full` (nm), in proportion below."""
    return (lever / full.clamp(min=1e-12)).clamp(max=1.0)


def _is_stretch(part: CustomBonded) -> bool:
    return [g.kind for g in part.geometry] == ["distance"]


def _custom_radial(part: CustomBonded) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def radial(r: Tensor) -> tuple[Tensor, Tensor]:
        value, (slope,) = part.program(r)
        shape = torch.broadcast_shapes(value.shape, (part.n_terms, 1))
        return value.expand(shape), slope.expand(shape)

    return radial


def _along(part: CustomBonded, line: nn.Module, x: Tensor) -> Tensor:
    r = _length(x.index_select(1, part.head) - x.index_select(1, part.tail))
    energies: Tensor = line(part.program.value, r)
    return energies


def _torsion_bounds(tables: TermTables) -> Floats:
    """For each torsion, the largest slope (kJ/mol/rad) and energy that a lever must carry."""
    phi = np.linspace(-np.pi, np.pi, 721)
    p, q = tables.torsion_parameters.reshape(-1, 2, MAX_PERIODICITY + 1).transpose(1, 0, 2)
    powers = np.cos(phi) ** np.arange(MAX_PERIODICITY + 1)[:, None]
    energy = p @ powers + np.sin(phi) * (q @ powers)
    # The energy is a trigonometric polynomial: differences over half a degree miss less than 0.1 % of its slope.
    slope = np.abs(np.gradient(energy, phi, axis=1)).max(axis=1)
    return 1.001 * (slope + _LEVER_SLOPE * np.abs(energy).max(axis=1))


def _map_bound(energy: Floats) -> float:
    """The same for a map, whose two dihedrals each have a lever."""
    coefficients = bicubic_coefficients(energy).reshape(4, 4, -1)
    t = np.linspace(0, 1, 17)
    powers = t ** np.arange(4)[:, None]
    slopes = np.arange(4)[:, None] * t ** np.maximum(np.arange(4) - 1, 0)[:, None]
    scale = len(energy) / (2 * np.pi)
    value = np.abs(np.einsum("abn,ax,by->xyn", coefficients, powers, powers)).max()
    by_first = np.abs(np.einsum("abn,ax,by->xyn", coefficients, slopes, powers)).max() * scale
    by_second = np.abs(np.einsum("abn,ax,by->xyn", coefficients, powers, slopes)).max() * scale
    return float(1.01 * (by_first + by_second + 2 * _LEVER_SLOPE * value))


def _check_attraction(walls: Walls, atoms: np.ndarray, limit: float, name_of: Callable[[int], str]) -> None:
    """Refuse a threshold below the attraction between the walls of an interaction; `atoms` (n, 2) in their order."""
    pulls = walls.largest_pull.flatten()
    worst = int(pulls.argmax()) if len(pulls) else 0
    if not len(pulls) or float(pulls[worst]) <= limit:
        return
    first, second = (name_of(int(atom)) for atom in atoms[worst])
    raise PotentialError(
        f"max_gradient={limit:g} kJ/mol/nm is less than the attraction of {first} and {second}, outside of their "
        f"repulsive wall; choose more than {np.ceil(float(pulls[worst])):.0f}"
    )
