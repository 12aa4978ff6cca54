"""Sampling under a static bias that flattens two torsions, with exact reweighting.

Far cheaper than parallel tempering where the slow variables are known: every evaluation is spent at the target
temperature, and walkers diffuse freely over barriers. The bias is a periodic bicubic spline, evaluated like a CMAP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy import CompiledPotential, Potential
from boltzgen.energy.compilation import compile_program
from boltzgen.energy.geometry import dihedral
from boltzgen.energy.program import TermProgram
from boltzgen.energy.tables import Floats, TermTables
from boltzgen.energy.terms import bicubic_coefficients
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.sampling.langevin import BatchedLangevin, LayoutForces, counted, heavy_hydrogens, layout_forces, relax
from boltzgen.sampling.particles import Particles, particle_numbers
from boltzgen.sampling.rounds import SamplingRounds, Spent, digest
from boltzgen.sampling.run import SamplingRun, generator, in_femtoseconds

__all__ = ["BiasedEnergy", "TorsionBias", "flattened_sampling", "learn_bias", "torsion_angles"]


@dataclass(frozen=True, eq=False)
class TorsionBias:
    """A bias energy on two torsions.

    Attributes
    ----------
    atoms : tuple of two tuples of four ints
        The torsions.
    grid : (n, n) array
        kJ/mol at multiples of 360/n degrees, first index along the first torsion; periodic bicubic spline between.
    evaluations : int
    seconds : float
        What it took to learn it.
    ended_early : bool
        Whether the learning was stopped before all its steps were done.
    """

    atoms: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
    grid: Floats
    evaluations: int = 0
    seconds: float = 0.0
    ended_early: bool = False

    def tables(self, atoms: Sequence[Sequence[int]] | None = None) -> TermTables:
        """The bias as a CMAP term; on atoms of other numbers if these are given."""
        row = np.concatenate(self.atoms if atoms is None else atoms)[None].astype(np.int64)
        return TermTables(cmaps=row, cmap_index=np.zeros(1, dtype=np.int64), cmap_energies=[self.grid])

    def energy(self, positions: Tensor) -> Tensor:
        """Bias (B,) in kJ/mol at positions (B, N, 3) in nm, in float64."""
        program = TermProgram(self.tables(), positions.shape[1]).to(positions.device, torch.float64)
        with torch.no_grad():
            energy: Tensor = program(positions.double().permute(2, 1, 0).contiguous(), False)[0]
        return energy


class BiasedEnergy:
    """Energy and gradient of a potential with a bias that can be changed without compiling again.

    Parameters
    ----------
    potential : Potential
        Of all atoms of a molecule, or a `PartialPotential`. The bias joins the terms of a `CompiledPotential` and is
        added to the energy of any other.
    bias : TorsionBias
        The first bias; its torsions and grid size stay.
    planned : int
        Evaluations to come, to decide whether compiling pays.
    device : str or torch.device, optional
        That of the potential if absent.

    Attributes
    ----------
    forces : LayoutForces
    torsions : tuple of two tuples of four ints
        By the numbers of the particles that move.
    """

    def __init__(
        self, potential: Potential, bias: TorsionBias, planned: int, device: torch.device | str | None = None
    ) -> None:
        device = device_of(potential) if device is None else torch.device(device)
        self.torsions = tuple(particle_numbers(potential, row) for row in bias.atoms)
        tables = bias.tables(self.torsions)
        self._cells = bias.grid.size
        if isinstance(potential, CompiledPotential):
            self._program = potential.with_terms(tables, device, torch.float32)
            self.forces = _joined_forces(self._program, potential, device, planned)
        else:
            self._program = TermProgram(tables, potential.n_atoms).to(device, torch.float32)
            self.forces = _added_forces(self._program, layout_forces(potential, device, torch.float32, planned))

    def set_grid(self, grid: Floats) -> None:
        """Replace the bias, (n, n) in kJ/mol."""
        table = self._program.bonded.cmap_table
        table[:, -self._cells :] = torch.from_numpy(bicubic_coefficients(grid)).to(table)


def device_of(potential: Potential) -> torch.device:
    """Where a potential is evaluated."""
    return getattr(potential, "device", None) or torch.device("cpu")


def _joined_forces(
    program: TermProgram, potential: CompiledPotential, device: torch.device, planned: int
) -> LayoutForces:
    """Of a System's terms and the bias in one program, compiled if that pays."""
    evaluator: LayoutForces = lambda x: program(x, True)
    if potential.worth_compiling(planned):
        batch = potential.chunk_size(device) // 2
        evaluator, potential.compile_reason = compile_program(program, potential.n_atoms, batch, True, potential.frames)
    return counted(evaluator, potential, potential.chunk_size(device))


def _added_forces(bias: TermProgram, forces: LayoutForces) -> LayoutForces:
    """Of a potential, with the bias added."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, gradient = forces(x)
        with torch.no_grad():
            more, slope = bias(x, True)
        assert gradient is not None
        return energy + more, gradient + slope

    return evaluate


def torsion_angles(positions: Tensor, atoms: Sequence[Sequence[int]]) -> Tensor:
    """Torsions in degrees, (n_torsions, B), in [-180, 180], of coordinates (3, N, B)."""
    i, j, k, m = torch.tensor([list(row) for row in atoms], device=positions.device).T
    x = positions
    cosine, sine, *_ = dihedral(x[:, j] - x[:, i], x[:, k] - x[:, j], x[:, m] - x[:, k])
    return torch.rad2deg(torch.atan2(sine, cosine))


def learn_bias(
    molecule: Any,
    potential: Potential,
    torsions: tuple[str, str] = ("phi", "psi"),
    *,
    energy: BiasedEnergy | None = None,
    n_steps: int = 60_000,
    n_walkers: int = 512,
    time_step: Any = 2.0,
    bias_factor: float = 10.0,
    height: float = 0.05,
    width: float = 10.0,
    deposit_interval: int = 20,
    grid_size: int = 72,
    friction: float = 1.0,
    seed: int = 0,
    start: Any = None,
    progress: bool | StepsShower = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TorsionBias:
    """Learn a flattening bias by well-tempered metadynamics with many walkers on one grid.

    Parameters
    ----------
    molecule, potential
        The system, and its energy: best a `CompiledPotential`, or a `PartialPotential`.
    torsions : two str
        Names of the torsions (`molecule.torsions`).
    energy : BiasedEnergy, optional
        Made by an earlier call for the same torsions and grid; saves compiling.
    n_steps, n_walkers, time_step, friction, seed, start, progress, checkpoint
        As in `parallel_tempering`.
    bias_factor : float
        Ratio of the sampling temperature of the torsions to the real one: a barrier of b kT remains b/bias_factor high.
    height, width : float
        First height of each Gaussian in kT, and its standard deviation in degrees.
    deposit_interval : int
        Steps between deposits.
    grid_size : int
        Grid points along each torsion.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another run.

    References
    ----------
    Barducci, Bussi and Parrinello, Phys. Rev. Lett. 100, 020603 (2008); Raiteri et al., J. Phys. Chem. B 110, 3533
    (2006) for several walkers.
    """
    bias = flat_bias(molecule, torsions, grid_size)
    energy = energy or BiasedEnergy(potential, bias, n_steps * n_walkers)
    growing = _GrowingBias(energy, bias.grid, molecule.kT, bias_factor, height, width)
    particles = Particles(molecule, potential, heavy_hydrogens(molecule))
    spent = Spent(particles)
    settings = {
        "method": "learning a bias",
        "torsions": str(bias.atoms),
        "n_steps": n_steps,
        "n_walkers": n_walkers,
        "time_step": in_femtoseconds(time_step),
        "bias_factor": bias_factor,
        "height": height,
        "width": width,
        "deposit_interval": deposit_interval,
        "grid_size": grid_size,
        "friction": friction,
        "seed": seed,
    }
    x, n_rounds = particles.start(start, n_walkers).to(device_of(potential)), n_steps // deposit_interval
    learned = SamplingRounds(n_rounds, spent, particles, checkpoint, settings, x, lambda x: energy.forces(x)[0])
    walkers = _walkers(particles, energy, x, not learned.go_on, time_step, friction, seed)
    learned.drive(walkers, growing)
    with interruptible_steps(learned.left, progress, "learning the bias") as steps:
        for _ in learned.rounds(steps):
            walkers.run(deposit_interval)
            growing.deposit(walkers.positions)
    learned.finish()
    return TorsionBias(
        bias.atoms, growing.grid - growing.grid.min(), spent.evaluations, spent.seconds, learned.left > 0
    )


def flattened_sampling(
    molecule: Any,
    potential: Potential,
    bias: TorsionBias,
    *,
    n_steps: int,
    energy: BiasedEnergy | None = None,
    n_walkers: int = 512,
    n_groups: int = 32,
    time_step: Any = 2.0,
    friction: float = 1.0,
    save_interval: int = 500,
    burn_in: float = 0.2,
    seed: int = 0,
    start: Any = None,
    progress: bool | StepsShower = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> SamplingRun:
    """Sample under a static bias; log-weights + bias/kT give the unbiased distribution.

    Constraints of the System are kept; log-weights then hold the mass metric too, as in `parallel_tempering`.

    Hydrogens are made heavier (`heavy_hydrogens`), which leaves configurational averages as they are.

    Parameters
    ----------
    molecule, potential
        The system, and its energy: best a `CompiledPotential`, or a `PartialPotential`.
    bias : TorsionBias
        From `learn_bias`.
    energy : BiasedEnergy, optional
        As in `learn_bias`.
    n_groups : int
        Walkers are split into so many groups, independent of each other.
    n_steps, n_walkers, time_step, friction, save_interval, burn_in, seed, start, progress, checkpoint
        As in `parallel_tempering`.

    Raises
    ------
    PotentialError
        The walkers cannot be split into the groups, a trajectory blew up, or an end before the first frame.
    CheckpointError
        If the checkpoint is damaged, or of another run.
    """
    if n_groups < 2 or n_walkers % n_groups:
        raise PotentialError(f"{n_walkers} walkers cannot be split into {n_groups} equal groups")
    particles = Particles(molecule, potential, heavy_hydrogens(molecule))
    spent = Spent(particles)
    energy = energy or BiasedEnergy(potential, bias, n_steps * n_walkers)
    energy.set_grid(bias.grid)
    x = particles.start(start, n_walkers).to(device_of(potential))
    n_rounds = max(n_steps // save_interval, 1)
    settings = {"n_walkers": n_walkers, "n_groups": n_groups, "friction": friction, "burn_in": burn_in}
    step_fs = in_femtoseconds(time_step)
    identity = {
        "method": "flattened sampling",
        **settings,
        "n_steps": n_steps,
        "time_step": step_fs,
        "save_interval": save_interval,
        "seed": seed,
        "torsions": str(bias.atoms),
        "bias": digest(bias.grid),
    }
    sampled = SamplingRounds(n_rounds, spent, particles, checkpoint, identity, x, lambda x: energy.forces(x)[0])
    walkers = _walkers(particles, energy, x, not sampled.go_on, time_step, friction, seed)
    sampled.drive(walkers)
    with interruptible_steps(sampled.left, progress, "flattened sampling") as steps:
        for round_ in sampled.rounds(steps):
            walkers.run(save_interval)
            if round_ >= burn_in * n_rounds:
                frame = particles.all_atoms(walkers.frames())
                sampled.keep(
                    positions=frame.cpu().numpy(),
                    bias=bias.energy(frame).cpu().numpy(),
                    energies=walkers.energies.cpu().numpy(),
                )
    sampled.finish()
    sampled.require_frames(save_interval)
    positions, bias_energy, total = (np.concatenate(sampled.frames[k]) for k in ("positions", "bias", "energies"))
    metric = particles.log_metric(positions)
    return SamplingRun(
        ensemble=Ensemble(
            positions=positions,
            log_weights=bias_energy / molecule.kT - metric,
            kT=molecule.kT,
            energies=total - bias_energy,
            molecule=molecule,
            target=particles.target,
            groups=np.tile(np.arange(n_walkers) * n_groups // n_walkers, len(positions) // n_walkers),
        ),
        method="flattened torsions, static bias, reweighted",
        evaluations=spent.evaluations,
        seconds=spent.seconds,
        n_steps=sampled.done * save_interval,
        ended_early=sampled.left > 0,
        time_step=step_fs,
        seed=seed,
        mass_metric=float(metric.std()),
        settings=settings,
    )


def flat_bias(molecule: Any, torsions: tuple[str, str], grid_size: int) -> TorsionBias:
    """No bias yet on two named torsions."""
    known = molecule.torsions
    missing = [name for name in torsions if name not in known]
    if missing:
        raise PotentialError(f"the molecule has no torsion {missing[0]!r}; it has {', '.join(known)}")
    return TorsionBias((known[torsions[0]], known[torsions[1]]), np.zeros((grid_size, grid_size)))


class _GrowingBias:
    """A bias that walkers leave Gaussians on: well-tempered metadynamics on a grid."""

    def __init__(
        self, energy: BiasedEnergy, grid: Floats, kT: float, bias_factor: float, height: float, width: float
    ) -> None:
        self._energy, self.grid = energy, grid.copy()
        self._height, self._falling = height * kT, kT * (bias_factor - 1)
        self._kernel = _gaussian_kernel(len(grid), width)
        energy.set_grid(self.grid)

    def deposit(self, positions: Tensor) -> None:
        """One Gaussian from each walker at (3, N, B) coordinates."""
        angles, n = torsion_angles(positions, self._energy.torsions).cpu().numpy(), len(self.grid)
        cell = np.round(angles / 360 * n).astype(int) % n
        counts = np.zeros_like(self.grid)
        np.add.at(counts, (cell[0], cell[1]), self._height * np.exp(-self.grid[cell[0], cell[1]] / self._falling))
        self.grid += np.fft.irfft2(np.fft.rfft2(counts) * self._kernel, s=counts.shape)
        self._energy.set_grid(self.grid)

    def state_dict(self) -> dict[str, Any]:
        return {"grid": torch.from_numpy(self.grid.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.grid[...] = state["grid"].numpy()
        self._energy.set_grid(self.grid)


def _walkers(
    particles: Particles, energy: BiasedEnergy, start: Tensor, relaxed: bool, time_step: Any, friction: float, seed: int
) -> BatchedLangevin:
    constraints = particles.constraints(start)
    x = relax(energy.forces, start, constraints=constraints) if relaxed else start
    step, random = in_femtoseconds(time_step) / 1000, generator(seed, start.device)
    kT = particles.molecule.kT
    return BatchedLangevin(energy.forces, x, particles.masses, kT, step, friction, random, constraints)


def _gaussian_kernel(grid_size: int, width: float) -> np.ndarray:
    """Fourier transform of a periodic Gaussian of height 1 on the grid; width in degrees."""
    distance = np.minimum(np.arange(grid_size), grid_size - np.arange(grid_size)) * 360 / grid_size
    line = np.exp(-0.5 * (distance / width) ** 2)
    return np.fft.rfft2(line[:, None] * line[None, :])
