"""What every sampler returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openmm import unit

from boltzgen.diagnostics import Verdict
from boltzgen.ensemble import Ensemble

if TYPE_CHECKING:
    from boltzgen.free_energy import FreeEnergies

__all__ = [
    "SamplingRun",
    "generator",
    "in_femtoseconds",
    "in_kelvin",
]

LEAST_ACCEPTED = 0.1  # below it walkers hardly move
GAS_CONSTANT = 8.31446261815324e-3  # kJ/mol/K


@dataclass(frozen=True, eq=False)
class SamplingRun:
    """Frames of a sampler with the record of how they were made.

    Attributes
    ----------
    ensemble : Ensemble
        Frames, log-weights and labels of the mutually independent groups they belong to.
    method : str
        The sampler, in words.
    evaluations : int
        Energy evaluations (each with forces), burn-in included; of a `PartialPotential`, those of its whole molecule.
    seconds : float
        Wall time of the sampling.
    n_steps : int
        Steps of each walker, burn-in included.
    time_step : float
        fs.
    seed : int
        Of the generator.
    temperatures : (R,) array
        K; of the replicas, the target first.
    swap_acceptance : (R - 1,) array
        Accepted share of the swaps between neighbouring temperatures.
    move_acceptance : (R,) array
        Accepted share of the trajectories at each temperature, of hybrid Monte Carlo; empty for dynamics.
    round_trips : int
        Number of times that a replica went from the lowest to the highest temperature and back, burn-in included.
    outside : float
        Share of the weight that lay outside the domain and was left out of the ensemble.
    mass_metric : float
        Standard deviation of the part that constraints have in the log-weights; zero without constraints.
    replicas : tuple of Ensemble
        Frames of each temperature, the target first, where they were asked for; `restricted` leaves them as they are.
        Ladders are independent of each other: a group is the same ladder at every temperature.
    ended_early : bool
        Whether it was stopped before all steps were done.
    settings : dict
        Everything else that was chosen.
    """

    ensemble: Ensemble
    method: str
    evaluations: int
    seconds: float
    n_steps: int
    time_step: float
    seed: int
    temperatures: np.ndarray = field(default_factory=lambda: np.zeros(0))
    swap_acceptance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    move_acceptance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    round_trips: int | None = None
    outside: float = 0.0
    mass_metric: float = 0.0
    replicas: tuple[Ensemble, ...] = ()
    ended_early: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def free_energy(self, basins: Mapping[str, str]) -> FreeEnergies:
        """Free energy of each basin against all else, errors from the independent groups."""
        from boltzgen.free_energy import basin_free_energies

        return basin_free_energies(self.ensemble, basins, self.verdict())

    def verdict(self) -> Verdict:
        """What the record of the run allows to claim; importance-sampling diagnostics do not apply to trajectories."""
        if self.round_trips == 0:
            return Verdict("do not use", "no replica has gone from the lowest to the highest temperature and back")
        if len(self.move_acceptance) and self.move_acceptance.min() < LEAST_ACCEPTED:
            least = self.move_acceptance.min()
            return Verdict("do not use", f"only {least:.1%} of the trajectories were accepted: use a shorter time step")
        trips = "" if self.round_trips is None else f", {self.round_trips} round trips of replicas"
        reason = (
            f"{self.method}, {self.evaluations:.2g} evaluations{trips}; a mode that no walker has found is not seen"
        )
        return Verdict("consistent; missing modes not checked", reason)

    def restricted(self, inside: np.ndarray) -> SamplingRun:
        """The run without the frames outside a domain; their share of the weight is kept in `outside`.

        Parameters
        ----------
        inside : (n,) bool array
            Which frames to keep.
        """
        from dataclasses import replace

        share = float(self.ensemble.weights[~inside].sum())
        return replace(self, ensemble=self.ensemble[np.nonzero(inside)[0]], outside=share)

    def report(self) -> str:
        """A few lines of plain text."""
        lines = [
            f"{self.method}: {len(self.ensemble)} frames, {self.evaluations:.3g} energy evaluations, "
            f"{self.seconds:.0f} s, time step {self.time_step:g} fs, seed {self.seed}"
        ]
        if len(self.swap_acceptance):
            swaps = ", ".join(f"{value:.2f}" for value in self.swap_acceptance)
            trips = "" if self.round_trips is None else f"; {self.round_trips} round trips"
            lines.append(
                f"temperatures {self.temperatures[0]:.0f}-{self.temperatures[-1]:.0f} K; accepted swaps {swaps}{trips}"
            )
        if len(self.move_acceptance):
            shares = ", ".join(f"{value:.2f}" for value in self.move_acceptance)
            lines.append(f"accepted trajectories {shares}")
        if self.ended_early:
            lines.append(f"ended early, after {self.n_steps:,} steps of each walker")
        if self.outside:
            lines.append(f"outside the domain, left out: {self.outside:.2e} of the weight")
        if self.mass_metric:
            lines.append(f"weights by the mass metric of the constraints: log-weights vary by {self.mass_metric:.2g}")
        return "\n".join(lines)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator(device).manual_seed(seed)


def in_femtoseconds(time: Any) -> float:
    """A time in fs, from a Quantity or a number of fs."""
    return float(time.value_in_unit(unit.femtosecond) if unit.is_quantity(time) else time)


def in_kelvin(temperature: Any) -> float:
    """A temperature in K, from a Quantity or a number of K."""
    return float(temperature.value_in_unit(unit.kelvin) if unit.is_quantity(temperature) else temperature)
