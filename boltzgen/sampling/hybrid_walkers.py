"""Many independent walkers under hybrid Monte Carlo, in one batch: Metropolis-Hastings by trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.errors import PotentialError
from boltzgen.sampling.walkers import LayoutForces, Walkers

__all__ = ["HybridWalkers"]

SPREAD = 0.2  # of the time step about its mean, or trajectories of one length could go round an orbit and come back


class HybridWalkers(Walkers):
    """Leapfrog trajectories with fresh velocities, each accepted or rejected as a whole.

    Frames follow exp(-U/kT) whatever the time step, which sets the acceptance alone.

    Parameters
    ----------
    forces, positions, masses, kT, generator
        As of `boltzgen.sampling.BatchedLangevin`.
    time_step : float
        ps, the mean; each trajectory of each walker has its own, up to a fifth longer or shorter.
    n_leapfrog : int
        Steps of a trajectory, each one force evaluation.

    Attributes
    ----------
    attempted : int
        Trajectories of each walker.
    accepted : (B,) tensor
        How many of them, by column.

    References
    ----------
    Duane, Kennedy, Pendleton and Roweth, Phys. Lett. B 195, 216 (1987).
    """

    def __init__(
        self,
        forces: LayoutForces,
        positions: Tensor,
        masses: np.ndarray,
        kT: float | Tensor,
        time_step: float,
        n_leapfrog: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(forces, positions, generator)
        self.attempted = 0
        self.accepted = torch.zeros(positions.shape[2], dtype=torch.float64, device=positions.device)
        self._time_step, self._n_leapfrog = time_step, n_leapfrog
        self._mass = torch.from_numpy(np.asarray(masses, dtype=np.float64)).to(positions)[None, :, None]
        self._kT = torch.as_tensor(kT, dtype=positions.dtype, device=positions.device).expand(positions.shape[2])

    def run(self, n_steps: int) -> None:
        """Advance all walkers.

        Raises
        ------
        PotentialError
            If a walker has no finite energy to begin with, or the steps are not whole trajectories.
        """
        if n_steps % self._n_leapfrog:
            raise PotentialError(f"{n_steps} steps are no whole trajectories of {self._n_leapfrog}")
        lost = int((~torch.isfinite(self.energies)).sum())
        if lost:
            raise PotentialError(f"{lost} of {self.n_walkers} walkers have no finite energy to start from")
        for _ in range(n_steps // self._n_leapfrog):
            self._trajectory()

    def acceptance(self) -> np.ndarray:
        """Accepted share of the trajectories of each column (B,).

        Raises
        ------
        PotentialError
            If nothing was accepted, or nothing in a column where twenty trajectories and more should have been.
        """
        still, usual = self.accepted == 0, float(self.accepted.mean())
        if bool(still.all()) or (usual > 20 and bool(still.any())):
            stuck = int(still.sum())
            raise PotentialError(
                f"{stuck} of {self.n_walkers} walkers never moved in {self.attempted} trajectories with a time step of "
                f"{1e3 * self._time_step:g} fs: use a shorter one, or shorter trajectories"
            )
        return np.asarray((self.accepted / self.attempted).cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"attempted": self.attempted, "accepted": self.accepted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.accepted.copy_(state["accepted"])
        self.attempted = int(state["attempted"])

    def _trajectory(self) -> None:
        n_walkers = len(self.energies)
        # The centre of mass diffuses and carries no information; near the origin single precision is finest.
        start = self.positions - self.positions.mean(dim=1, keepdim=True)
        noise = torch.empty_like(start).normal_(generator=self._generator)
        uniform = torch.rand(2, n_walkers, generator=self._generator, dtype=torch.float64, device=start.device)
        step = self._time_step * (1 - SPREAD + 2 * SPREAD * uniform[0]).to(start)
        v = noise * (self._kT / self._mass).sqrt()
        before = self.energies.double() + self._kinetic(v)
        x, energies, gradient = start.clone(), self.energies, self._gradient
        v -= 0.5 * step / self._mass * gradient
        for k in range(self._n_leapfrog):
            x += step * v
            energies, gradient = self._evaluate(x)
            v -= (step if k < self._n_leapfrog - 1 else 0.5 * step) / self._mass * gradient
        after = energies.double() + self._kinetic(v)
        # An undefined energy is as good as an infinite one: the proposal is not accepted.
        log_chance = ((before - after) / self._kT.double()).nan_to_num(
            nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
        )
        accepted = uniform[1].log() < log_chance
        self.attempted += 1
        self.accepted += accepted
        self.positions = torch.where(accepted, x, start)
        self.energies = torch.where(accepted, energies, self.energies)
        self._gradient = torch.where(accepted, gradient, self._gradient)

    def _kinetic(self, velocities: Tensor) -> Tensor:
        """Kinetic energies (B,) in kJ/mol."""
        return 0.5 * (velocities.double().square() * self._mass).sum(dim=(0, 1))
