"""Many independent walkers under Langevin dynamics, in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from boltzgen.energy import CompiledPotential, Potential
from boltzgen.errors import PotentialError
from boltzgen.sampling.constraints import Constraints
from boltzgen.sampling.walkers import LayoutForces, Walkers

__all__ = [
    "BatchedLangevin",
    "LayoutForces",
    "heavy_hydrogens",
    "layout_forces",
    "relax",
    "start_positions",
    "system_masses",
]


class BatchedLangevin(Walkers):
    """Langevin dynamics by the BAOAB splitting, one force evaluation a step; with constraints its geodesic form.

    With constraints positions follow exp(-U/kT) sqrt(det Z) on them: `boltzgen.energy.log_mass_metric` is what the
    log-weights of the frames need.

    Parameters
    ----------
    forces : LayoutForces
        Energy and gradient of (3, N, B) coordinates.
    positions : (3, N, B) tensor
        nm; copied.
    masses : (N,) array
        amu. Averages over configurations do not depend on them.
    kT : float or (B,) tensor
        kJ/mol, for each walker.
    time_step : float
        ps.
    friction : float
        1/ps.
    generator : torch.Generator
        Source of all randomness.
    constraints : Constraints, optional
        Distances that stay constant; the positions must satisfy them.

    References
    ----------
    Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 (2013): BAOAB samples the configurations of a harmonic
    oscillator exactly, whatever the time step. With constraints: Leimkuhler and Matthews, Proc. R. Soc. A 472,
    20160138 (2016), g-BAOAB with one drift for each half step.
    """

    def __init__(
        self,
        forces: LayoutForces,
        positions: Tensor,
        masses: np.ndarray,
        kT: float | Tensor,
        time_step: float,
        friction: float,
        generator: torch.Generator,
        constraints: Constraints | None = None,
    ) -> None:
        super().__init__(forces, positions, generator)
        self.time_step = time_step
        self._constraints = constraints
        self._noise = torch.empty_like(self.positions)
        inverse_mass = torch.from_numpy(1 / np.asarray(masses, dtype=np.float64)).to(positions)[None, :, None]
        self._kick = -time_step * inverse_mass
        self._decay = float(np.exp(-friction * time_step))
        thermal = torch.sqrt(torch.as_tensor(kT, dtype=positions.dtype, device=positions.device) * inverse_mass)
        self._spread = thermal * float(np.sqrt(1 - self._decay**2))
        self.velocities = self._noise.normal_(generator=generator) * thermal
        self._project()

    def run(self, n_steps: int) -> None:
        """Advance all walkers.

        Raises
        ------
        PotentialError
            A walker has left the range of numbers: the time step is too long, or the start was bad.
        """
        # The centre of mass diffuses and carries no information; near the origin single precision is finest.
        self.positions -= self.positions.mean(dim=1, keepdim=True)
        v = self.velocities
        v.addcmul_(self._gradient, 0.5 * self._kick)
        for step in range(n_steps):
            self._project()
            self._drift()
            v.mul_(self._decay).addcmul_(self._noise.normal_(generator=self._generator), self._spread)
            self._project()
            self._drift()
            self.energies, self._gradient = self._evaluate(self.positions)
            v.addcmul_(self._gradient, self._kick if step < n_steps - 1 else 0.5 * self._kick)
        self._project()
        if not bool(torch.isfinite(self.energies).all()):
            raise PotentialError(
                f"{int((~torch.isfinite(self.energies)).sum())} of {self.n_walkers} walkers have no finite energy with "
                f"a time step of {1e3 * self.time_step:g} fs; use a shorter one, or start from a relaxed structure"
            )

    def _drift(self) -> None:
        """Half a step along the velocities, which follow the constraints."""
        half = 0.5 * self.time_step
        if self._constraints is None:
            self.positions.add_(self.velocities, alpha=half)
            return
        start = self.positions.clone()
        self.positions.add_(self.velocities, alpha=half)
        moved, displacement = self._constraints.onto(self.positions, start)
        self.positions.copy_(moved)
        self.velocities.add_(displacement, alpha=1 / half)

    def _project(self) -> None:
        """Leave the velocities no part that would change a constrained distance.

        The projection is linear: one serves all changes of the velocities at the same positions.
        """
        if self._constraints is not None:
            self.velocities.copy_(self._constraints.along(self.velocities, self.positions))

    def permute(self, order: Tensor, velocity_scale: Tensor) -> None:
        super().permute(order, velocity_scale)
        self.velocities = (self.velocities[:, :, order] * velocity_scale).contiguous()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"velocities": self.velocities}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.velocities.copy_(state["velocities"])

    def refresh(self) -> None:
        """Evaluate again, after the energy function has changed."""
        self.energies, self._gradient = self._evaluate(self.positions)


def layout_forces(potential: Potential, device: torch.device, dtype: torch.dtype, planned: int) -> LayoutForces:
    """Energies and gradients of (3, N, B) coordinates from any potential, counted as the potential counts.

    Parameters
    ----------
    potential : Potential
        A `CompiledPotential` is used in its own layout, compiled if that pays for `planned` configurations.
    device, dtype
        Of the coordinates.
    planned : int
        Configurations to come.
    """
    if not isinstance(potential, CompiledPotential):

        def any_potential(x: Tensor) -> tuple[Tensor, Tensor]:
            energy, forces = potential.energy_and_forces(x.permute(2, 1, 0).contiguous())
            return energy, -forces.permute(2, 1, 0).contiguous()

        return any_potential
    evaluator = potential.evaluator(device, dtype, True, planned)
    return counted(evaluator, potential, potential.chunk_size(device))


def counted(evaluator: LayoutForces, potential: Potential, chunk: int) -> LayoutForces:
    """The evaluator in chunks, without autograd, counted on the potential."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor | None]:
        potential.counts.add(energy=x.shape[2], force=x.shape[2])
        with torch.no_grad():
            if x.shape[2] <= chunk:
                return evaluator(x)
            parts = [evaluator(part.contiguous()) for part in x.split(chunk, dim=2)]
        return torch.cat([e for e, _ in parts]), torch.cat([g for _, g in parts if g is not None], dim=2)

    return evaluate


def relax(
    forces: LayoutForces, positions: Tensor, n_steps: int = 200, constraints: Constraints | None = None
) -> Tensor:
    """Take the worst strain out of (3, N, B) coordinates: steepest descent with at most 0.5 pm a step.

    The result satisfies the constraints, whether the start does or not.
    """
    x = positions.clone()
    if constraints is not None:
        x = constraints.onto(x, x)[0]
    for _ in range(n_steps):
        _, gradient = forces(x)
        assert gradient is not None
        step = (2e-6 * torch.nan_to_num(gradient)).clamp(-5e-4, 5e-4)
        x = x - step if constraints is None else constraints.onto(x - step, x)[0]
    return x


def system_masses(molecule: Any) -> np.ndarray:
    """Masses (N,) in amu."""
    system = molecule.system
    return np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])


def heavy_hydrogens(molecule: Any, mass: float = 6.0) -> np.ndarray:
    """Masses (N,) in amu with hydrogens made heavier, so that 2 fs steps err as little as shorter ones.

    Averages over configurations do not depend on masses (with constraints: after the weights that account for them). At
    6 amu the stretches of N-H and C=O are about equally fast.
    """
    masses = system_masses(molecule)
    return np.where(masses < 2.1, np.maximum(masses, mass), masses)


def start_positions(molecule: Any, start: Any, n_walkers: int) -> Tensor:
    """Coordinates (3, N, n_walkers) in nm, float32, from one structure or one for each walker.

    Parameters
    ----------
    molecule : Molecule
        Its positions are the start when `start` is None.
    start : Quantity, array or tensor, optional
        (N, 3) or (n_walkers, N, 3); nm without a unit.
    n_walkers : int
        Number of walkers.

    Raises
    ------
    PotentialError
        Wrong shape.
    """
    value = molecule.positions if start is None else start
    if unit.is_quantity(value):
        value = value.value_in_unit(unit.nanometer)
    if not isinstance(value, Tensor):
        value = torch.tensor(np.array(value, dtype=np.float64))
    n_atoms = molecule.system.getNumParticles()
    if tuple(value.shape) == (n_atoms, 3):
        value = value.expand(n_walkers, n_atoms, 3)
    if tuple(value.shape) != (n_walkers, n_atoms, 3):
        raise PotentialError(
            f"start has shape {tuple(value.shape)}; ({n_atoms}, 3) or ({n_walkers}, {n_atoms}, 3) in nm is expected"
        )
    return value.to(torch.float32).permute(2, 1, 0).contiguous()
