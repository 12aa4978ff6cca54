"""Energy minimisation of the hydrogens of many configurations at once, heavy atoms fixed.

OpenMM minimises one configuration at a time; this L-BFGS is the package's own, and a test compares it with OpenMM's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boltzgen.flows.hydrogen_variables import HydrogenVariables

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential

__all__ = ["minimize_batch", "minimized_variables"]

log = logging.getLogger(__name__)

TORSION_UNIT = 0.2  # rad; the thermal width of a methyl's torsion at 300 K, as one whitened variable is of the others
TOLERANCE = 1e-3  # kT per thermal width: the energy is then within 1e-6 kT of the minimum
MAX_ITERATIONS = 500
MEMORY = 8
LARGEST_STEP = 1.0  # thermal widths
SUFFICIENT_DECREASE = 1e-4
ROWS_AT_ONCE = 4096


def minimized_variables(
    variables: HydrogenVariables, potential: Potential, kT: float, heavy: Tensor, start: Tensor | None = None
) -> Tensor:
    """Positions with the hydrogens at their energy minimum.

    Works in float64, in whitened variables, in which the energy in units of kT is nearly half the squared norm.

    Parameters
    ----------
    variables : HydrogenVariables
    potential : Potential
    kT : float
        kJ/mol.
    heavy : (B, n_heavy, 3) tensor, nm
    start : (B, N, 3) tensor, nm, optional
        Hydrogens to start from, within the bounds of their coordinates; the harmonic guess if absent.

    Returns
    -------
    (B, N, 3) float64 tensor
        Without gradient.
    """
    double = copy.deepcopy(variables).double()
    parts = [
        _minimized(double, potential, kT, rows.double(), None if first is None else first.double())
        for rows, first in zip(
            heavy.detach().split(ROWS_AT_ONCE),
            [None] * (len(heavy) // ROWS_AT_ONCE + 1) if start is None else start.detach().split(ROWS_AT_ONCE),
            strict=False,
        )
    ]
    return torch.cat(parts)


def _minimized(
    variables: HydrogenVariables, potential: Potential, kT: float, heavy: Tensor, start: Tensor | None
) -> Tensor:
    with torch.no_grad():
        _, heavy_z = variables.features(heavy)

    def place(u: Tensor, rows: Tensor) -> Tensor:
        turns, z = u.tensor_split([variables.n_torsions], dim=1)
        torsions = variables.torsion_centres + TORSION_UNIT * turns
        coordinates, _ = variables.to_coordinates(torsions, z, heavy_z[rows])
        return variables.coordinates.place(heavy[rows], coordinates)[0]

    def reduced(u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            positions = place(u, rows)
            energy, forces = potential.energy_and_forces(positions.detach())
            (gradient,) = torch.autograd.grad(positions, u, -forces / kT)
        return energy / kT, gradient

    first = heavy.new_zeros(len(heavy), variables.n_torsions + variables.n_stiff)
    if start is not None:
        with torch.no_grad():
            torsions, z, _, _ = variables.to_variables(variables.coordinates.read(start), heavy_z)
            turns = torch.remainder(torsions - variables.torsion_centres + torch.pi, 2 * torch.pi) - torch.pi
            first = torch.cat([turns / TORSION_UNIT, z], dim=1)
    found, converged = minimize_batch(reduced, first)
    if not bool(converged.all()):
        log.warning("%d of %d minimisations of hydrogens did not converge", int((~converged).sum()), len(heavy))
    with torch.no_grad():
        return place(found, torch.arange(len(heavy), device=heavy.device))


def minimize_batch(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """Minimum of many functions at once by L-BFGS, each with its own history and its own step length.

    Each iteration tries one step of every row that has not converged; a row whose value does not fall enough halves its
    step and keeps its direction.

    Parameters
    ----------
    function : callable
        ``(x (n, D), rows (n,)) -> (value (n,), gradient (n, D))`` for some of the rows.
    start : (B, D) tensor
    tolerance : float
        Largest component of the gradient at convergence.

    Returns
    -------
    x : (B, D) tensor
    converged : (B,) bool tensor

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 3.1.
    """
    state = _Rows(function, start, tolerance)
    for _ in range(max_iterations):
        if not len(state.rows):
            break
        state.advance()
    converged = torch.ones(len(start), dtype=torch.bool, device=start.device)
    converged[state.rows] = False
    state.result[state.rows] = state.x
    return state.result, converged


class _Rows:
    """The rows that have not converged: where they are, where they go, and what they remember."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: Tensor, tolerance: float
    ) -> None:
        self.function, self.tolerance = function, tolerance
        self.result = start.clone()
        self.rows = torch.arange(len(start), device=start.device)
        self.x = start.clone()
        self.value, self.gradient = function(start, self.rows)
        self.steps = start.new_zeros(MEMORY, *start.shape)
        self.changes = torch.zeros_like(self.steps)
        self.length = start.new_ones(len(start))
        self.direction = self._direction()
        self._retire()

    def advance(self) -> None:
        slope = (self.gradient * self.direction).sum(1)
        trial = self.x + self.length.unsqueeze(1) * self.direction
        value, gradient = self.function(trial, self.rows)
        accepted = value <= self.value + SUFFICIENT_DECREASE * self.length * slope
        keep = accepted.unsqueeze(1)
        step, change = trial - self.x, gradient - self.gradient
        # A pair without positive curvature would spoil the approximation of the inverse Hessian.
        curved = keep & ((step * change).sum(1, keepdim=True) > 1e-10 * step.square().sum(1, keepdim=True))
        self.steps = torch.where(curved, torch.cat([self.steps[1:], step[None]]), self.steps)
        self.changes = torch.where(curved, torch.cat([self.changes[1:], change[None]]), self.changes)
        # Rounding can forbid any decrease close to the minimum: a step that became tiny starts over downhill.
        stuck = ~accepted & (self.length < 1e-6)
        self.steps = torch.where(stuck[:, None], torch.zeros_like(self.steps), self.steps)
        self.x, self.gradient = torch.where(keep, trial, self.x), torch.where(keep, gradient, self.gradient)
        self.value = torch.where(accepted, value, self.value)
        renewed = accepted | stuck
        self.length = torch.where(renewed, torch.ones_like(self.length), 0.5 * self.length)
        self.direction = torch.where(renewed.unsqueeze(1), self._direction(), self.direction)
        self._retire()

    def _direction(self) -> Tensor:
        """The two-loop recursion; pairs that were never filled have no effect."""
        rho = (self.steps * self.changes).sum(2)
        filled = rho > 0
        rho = torch.where(filled, 1 / torch.where(filled, rho, torch.ones_like(rho)), torch.zeros_like(rho))
        q, alphas = self.gradient, []
        for k in reversed(range(MEMORY)):
            alpha = rho[k] * (self.steps[k] * q).sum(1)
            q = q - alpha.unsqueeze(1) * self.changes[k]
            alphas.append(alpha)
        for k, alpha in zip(range(MEMORY), reversed(alphas), strict=True):
            beta = rho[k] * (self.changes[k] * q).sum(1)
            q = q + (alpha - beta).unsqueeze(1) * self.steps[k]
        uphill = (q * self.gradient).sum(1, keepdim=True) <= 0
        q = torch.where(uphill, self.gradient, q)
        largest = q.abs().amax(1, keepdim=True)
        return -q * (LARGEST_STEP / largest.clamp(min=LARGEST_STEP))

    def _retire(self) -> None:
        """Write down rows whose gradient vanishes (that of an infinite energy does, too), and go on with the others."""
        active = self.gradient.abs().amax(1) > self.tolerance
        done = ~active
        self.result[self.rows[done]] = self.x[done]
        self.rows, self.x, self.value = self.rows[active], self.x[active], self.value[active]
        self.gradient, self.direction, self.length = self.gradient[active], self.direction[active], self.length[active]
        self.steps, self.changes = self.steps[:, active], self.changes[:, active]
