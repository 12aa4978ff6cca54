"""Parallel tempering: batched dynamics or hybrid Monte Carlo at several temperatures, with replica exchange."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy import Potential
from boltzgen.energy import potential as choose_potential
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.sampling.flattened import BiasedEnergy, TorsionBias
from boltzgen.sampling.hybrid_walkers import HybridWalkers
from boltzgen.sampling.langevin import BatchedLangevin, heavy_hydrogens, layout_forces, relax
from boltzgen.sampling.particles import Particles
from boltzgen.sampling.rounds import SamplingRounds, Spent, digest
from boltzgen.sampling.run import GAS_CONSTANT, SamplingRun, generator, in_femtoseconds, in_kelvin

__all__ = ["ReplicaExchange", "parallel_tempering"]


class ReplicaExchange:
    """Swaps between neighbouring temperatures, and the record of them.

    Walker w at temperature r is column r * n_walkers + w of the batch; each of the n_walkers ladders swaps on its own,
    so that the ladders stay independent of each other.

    Parameters
    ----------
    temperatures : (R,) array
        K, ascending.
    n_walkers : int
        Number of ladders W.
    generator : torch.Generator
        Source of the random numbers.
    """

    def __init__(self, temperatures: np.ndarray, n_walkers: int, generator: torch.Generator) -> None:
        self.temperatures = torch.from_numpy(temperatures)
        self.beta = 1 / (GAS_CONSTANT * self.temperatures)
        self.n_walkers = n_walkers
        self.attempted = torch.zeros(len(temperatures) - 1, dtype=torch.float64)
        self.accepted = torch.zeros_like(self.attempted)
        self.round_trips = 0
        self._generator = generator
        self._parity = 0
        # For each state of the ladder: 1 if it last saw the lowest, 2 if since then the highest temperature.
        self._visited = torch.zeros(len(temperatures), n_walkers, dtype=torch.int64)

    @property
    def kT(self) -> Tensor:
        """kT of every column, (R * W,) in kJ/mol."""
        return (GAS_CONSTANT * self.temperatures).repeat_interleave(self.n_walkers)

    def propose(self, energies: Tensor) -> tuple[Tensor, Tensor]:
        """One round of swaps between the even or the odd neighbours.

        Parameters
        ----------
        energies : (R * W,) tensor
            kJ/mol.

        Returns
        -------
        order, velocity_scale : (R * W,) tensors
            Column whose state each column takes, and the factor for its velocities.

        References
        ----------
        Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999).
        """
        n = len(self.temperatures)
        energy = energies.to("cpu", torch.float64).reshape(n, self.n_walkers)
        order = torch.arange(n * self.n_walkers).reshape(n, self.n_walkers)
        low = torch.arange(self._parity, max(n - 1, self._parity), 2)
        self._parity = 1 - self._parity
        if len(low):
            high = low + 1
            log_ratio = (self.beta[low] - self.beta[high])[:, None] * (energy[low] - energy[high])
            chance = torch.rand(log_ratio.shape, generator=self._generator, dtype=torch.float64)
            swap = chance.log() < log_ratio
            self.attempted[low] += self.n_walkers
            self.accepted[low] += swap.sum(dim=1).double()
            order[low], order[high] = (
                torch.where(swap, order[high], order[low]),
                torch.where(swap, order[low], order[high]),
            )
            self._track(order)
        flat = order.reshape(-1)
        old = self.temperatures.repeat_interleave(self.n_walkers)
        return flat, torch.sqrt(old / old[flat])

    def state_dict(self) -> dict[str, Any]:
        """All that the next swaps and their record depend on."""
        return {
            "attempted": self.attempted,
            "accepted": self.accepted,
            "round_trips": self.round_trips,
            "parity": self._parity,
            "visited": self._visited,
            "random": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an equal exchange was."""
        self.attempted.copy_(state["attempted"])
        self.accepted.copy_(state["accepted"])
        self._visited.copy_(state["visited"])
        self.round_trips, self._parity = int(state["round_trips"]), int(state["parity"])
        self._generator.set_state(state["random"])

    def _track(self, order: Tensor) -> None:
        visited = self._visited.reshape(-1)[order.reshape(-1)].reshape(order.shape)
        self.round_trips += int((visited[0] == 2).sum())
        visited[0] = 1
        visited[-1] = torch.where(visited[-1] == 1, 2, visited[-1])
        self._visited = visited


def parallel_tempering(
    molecule: Any,
    potential: Potential | None = None,
    *,
    n_steps: int,
    t_max: Any = 1200.0,
    n_replicas: int = 8,
    n_walkers: int = 64,
    time_step: Any = 1.0,
    friction: float = 2.0,
    trajectory: int | None = None,
    exchange_interval: int = 100,
    save_interval: int = 500,
    burn_in: float = 0.2,
    bias: TorsionBias | None = None,
    seed: int = 0,
    start: Any = None,
    device: str | torch.device = "cpu",
    all_temperatures: bool = False,
    progress: bool | StepsShower = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> SamplingRun:
    """Sample the Boltzmann distribution of a molecule by parallel tempering.

    Temperatures rise geometrically from the molecule's own to `t_max`; every step is one batch of
    n_replicas * n_walkers configurations. Constraints of the System are kept, and the frames weighted by the mass
    metric (`boltzgen.energy.log_mass_metric`), so that they are samples of what a generator has as its target.

    Parameters
    ----------
    molecule : Molecule
        Its temperature is the target.
    potential : Potential, optional
        Its energy; `boltzgen.energy.potential(molecule)` when absent. Of a `PartialPotential`, such as
        `boltzgen.placement.PlacedPotential`, the atoms that it depends on move and the others follow.
    n_steps : int
        Steps of every replica, burn-in included.
    t_max : Quantity or float
        Highest temperature, K.
    n_replicas, n_walkers : int
        Temperatures of a ladder (one: plain dynamics at the molecule's own), and number of independent ladders.
    time_step : Quantity or float
        fs. Bonds to hydrogen need 1 fs or less with the masses of the System.
    friction : float
        1/ps; of Langevin dynamics alone.
    trajectory : int, optional
        Hybrid Monte Carlo in the place of Langevin dynamics, with trajectories of so many steps: each is accepted or
        rejected (Metropolis), so that frames have no error from the time step. `exchange_interval` must be a multiple.
        Hydrogens are made heavier (`heavy_hydrogens`), which averages over configurations do not depend on.
    exchange_interval, save_interval : int
        Steps between swaps, and between saved frames of the target temperature.
    burn_in : float
        Share of the steps whose frames are left out.
    bias : TorsionBias, optional
        Added to the energy at every temperature, and taken out again by the weights of the frames: where two slow
        torsions are known, from `learn_bias`.
    seed : int
        Two runs with the same seed and the same machine give the same frames.
    start : Quantity, array or tensor, optional
        (N, 3) or (n_walkers, N, 3) in nm; the molecule's positions when absent.
    device : str or torch.device
        Where to run.
    all_temperatures : bool
        Keep the frames of every temperature too, in `SamplingRun.replicas`: R times the memory, for MBAR, which takes
        no bias.
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the sampling with the frames that there are; or wrap the rounds
        with this, which may end them early too.
    checkpoint : path-like, optional
        File that the state is written to every minute, and when the steps end, early or not (Ctrl-C without `progress`
        loses what came since). The same call goes on from it, on one thread to the very frames of an unbroken run.

    Returns
    -------
    SamplingRun
        Frames at the target temperature; each ladder is one independent group.

    Raises
    ------
    PotentialError
        Settings that make no sense, a trajectory that blew up, or an end before the first frame.
    CheckpointError
        If the checkpoint is damaged, or of another run.
    OutputError
        If the checkpoint cannot be written.
    """
    if trajectory is not None:
        _check(trajectory=trajectory)
        if exchange_interval % trajectory:
            raise PotentialError(f"exchange_interval={exchange_interval} is no multiple of trajectory={trajectory}")
    _check(n_steps=n_steps, n_replicas=n_replicas, n_walkers=n_walkers, exchange_interval=exchange_interval)
    if bias is not None and all_temperatures:
        raise PotentialError("all_temperatures: frames of a biased ladder are weighted at its lowest temperature alone")
    t_min, step_fs = in_kelvin(molecule.temperature), in_femtoseconds(time_step)
    if in_kelvin(t_max) <= t_min and n_replicas > 1:
        raise PotentialError(f"t_max must be above the temperature of the molecule, {t_min:g} K")
    device = torch.device(device)
    potential = choose_potential(molecule) if potential is None else potential
    particles = Particles(molecule, potential, None if trajectory is None else heavy_hydrogens(molecule))
    spent = Spent(particles)
    random = generator(seed, device)
    exchange = ReplicaExchange(np.geomspace(t_min, in_kelvin(t_max), n_replicas), n_walkers, generator(seed + 1))
    planned = n_steps * n_replicas * n_walkers
    biased = None if bias is None else BiasedEnergy(potential, bias, planned, device)
    forces = layout_forces(potential, device, torch.float32, planned) if biased is None else biased.forces
    x = particles.start(start, n_walkers).to(device).repeat(1, 1, n_replicas)
    constraints = particles.constraints(x)
    if trajectory is not None and constraints is not None:
        raise PotentialError("trajectory: hybrid Monte Carlo does not keep constraints; use Langevin dynamics")
    n_rounds = max(n_steps // exchange_interval, 1)
    save_rounds = max(save_interval // exchange_interval, 1)
    n_saved = n_walkers * (n_replicas if all_temperatures else 1)
    moves = {"friction": friction} if trajectory is None else {"trajectory": trajectory}
    settings = {"n_walkers": n_walkers, "exchange_interval": exchange_interval, **moves}
    identity = {
        "method": "parallel tempering",
        **settings,
        "temperatures": str(exchange.temperatures.tolist()),
        "n_steps": n_steps,
        "time_step": step_fs,
        "save_interval": save_interval,
        "burn_in": burn_in,
        "seed": seed,
        "all_temperatures": all_temperatures,
    }
    if bias is not None:
        identity |= {"torsions": str(bias.atoms), "bias": digest(bias.grid)}
    sampled = SamplingRounds(n_rounds, spent, particles, checkpoint, identity, x, lambda x: forces(x)[0])
    if not sampled.go_on:
        x = relax(forces, x, constraints=constraints)
    kT, masses, step = exchange.kT.to(device), particles.masses, step_fs / 1000
    walkers: BatchedLangevin | HybridWalkers
    if trajectory is None:
        walkers = BatchedLangevin(forces, x, masses, kT, step, friction, random, constraints)
    else:
        walkers = HybridWalkers(forces, x, masses, kT, step, trajectory, random)
    sampled.drive(walkers, exchange)
    with interruptible_steps(sampled.left, progress, "parallel tempering") as steps:
        for round_ in sampled.rounds(steps):
            walkers.run(exchange_interval)
            order, scale = exchange.propose(walkers.energies)
            walkers.permute(order.to(device), scale.to(walkers.positions))
            if round_ >= burn_in * n_rounds and (round_ + 1) % save_rounds == 0:
                frames = particles.all_atoms(walkers.frames()[:n_saved])
                added = {} if bias is None else {"bias": bias.energy(frames).cpu().numpy()}
                energies = walkers.energies[:n_saved].cpu().numpy()
                sampled.keep(positions=frames.cpu().numpy(), energies=energies, **added)
    sampled.finish()
    sampled.require_frames(exchange_interval)
    kTs = GAS_CONSTANT * exchange.temperatures.numpy()
    replicas, mass_metric = _ensembles(particles, sampled.frames, n_walkers, kTs)
    ensemble, accepted = replicas[0], np.zeros(0)
    if isinstance(walkers, HybridWalkers):
        accepted = walkers.acceptance().reshape(-1, n_walkers).mean(1)
    return SamplingRun(
        ensemble=ensemble,
        method=", ".join(
            ["parallel tempering"]
            + ([] if trajectory is None else ["hybrid Monte Carlo"])
            + ([] if bias is None else ["flattened torsions, reweighted"])
        ),
        evaluations=spent.evaluations,
        seconds=spent.seconds,
        n_steps=sampled.done * exchange_interval,
        ended_early=sampled.left > 0,
        time_step=step_fs,
        seed=seed,
        temperatures=exchange.temperatures.numpy(),
        swap_acceptance=(exchange.accepted / exchange.attempted.clamp(min=1)).numpy(),
        round_trips=exchange.round_trips if n_replicas > 1 else None,
        mass_metric=mass_metric,
        replicas=replicas if all_temperatures else (),
        move_acceptance=accepted,
        settings=settings,
    )


def _ensembles(
    particles: Particles, frames: Mapping[str, list[np.ndarray]], n_walkers: int, kT: np.ndarray
) -> tuple[tuple[Ensemble, ...], float]:
    """One for each temperature that frames were saved of, the lowest first, and how far its mass metric spreads.

    Equal weights, but for the bias and the mass metric of constraints; the walker is the group.
    """
    positions, total = np.stack(frames["positions"]), np.stack(frames["energies"])
    bias = np.stack(frames["bias"]) if "bias" in frames else np.zeros_like(total)
    found, metrics = [], []
    for k, start in enumerate(range(0, positions.shape[1], n_walkers)):
        rows = slice(start, start + n_walkers)
        x, added = positions[:, rows].reshape(-1, *positions.shape[2:]), bias[:, rows].reshape(-1)
        metrics.append(particles.log_metric(x))
        found.append(
            Ensemble(
                positions=x,
                log_weights=added / float(kT[k]) - metrics[k],
                kT=particles.molecule.kT if k == 0 else float(kT[k]),
                energies=total[:, rows].reshape(-1) - added,
                molecule=particles.molecule,
                target=particles.target,
                groups=np.tile(np.arange(n_walkers), len(positions)),
            )
        )
    return tuple(found), float(metrics[0].std())


def _check(**positive: int) -> None:
    for name, value in positive.items():
        if value < 1:
            raise PotentialError(f"{name} must be at least 1, not {value}")
