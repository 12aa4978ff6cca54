"""Parallel tempering by openmmtools on OpenMM itself: a second opinion that shares no code with the batched sampler."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from openmm import Platform, unit

from boltzgen.energy.simplification import simplify
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.sampling.constraints import metric_log_weights
from boltzgen.sampling.run import SamplingRun, in_femtoseconds, in_kelvin

__all__ = ["openmmtools_tempering"]


def openmmtools_tempering(
    molecule: Any,
    *,
    n_iterations: int,
    steps_per_iteration: int = 200,
    t_max: Any = 1200.0,
    n_replicas: int = 8,
    time_step: Any = 1.0,
    friction: float = 2.0,
    burn_in: float = 0.2,
    n_blocks: int = 16,
    seed: int = 0,
    start: Any = None,
    platform: str = "CPU",
    progress: bool | StepsShower = False,
) -> SamplingRun:
    """Parallel tempering with `openmmtools.multistate.ParallelTemperingSampler`.

    One ladder, one configuration at a time: about a hundred times slower than `parallel_tempering`. OpenMM keeps the
    constraints of the System, and the frames are weighted by the mass metric as those of `parallel_tempering` are.

    Parameters
    ----------
    molecule : Molecule
        Its temperature is the target.
    n_iterations, steps_per_iteration : int
        Rounds of swaps (between all pairs, as openmmtools does), and steps between them.
    t_max, n_replicas, time_step, friction, start
        As in `parallel_tempering`; one structure.
    burn_in : float
        Share of the iterations whose frames are left out.
    n_blocks : int
        The frames are labelled by so many consecutive blocks; errors from them are honest if a block is long against
        the slowest motion.
    seed : int
        Of NumPy's generator, which openmmtools uses for swaps. OpenMM's integrators choose their own.
    platform : str
        OpenMM platform.
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the run with the frames that there are; or wrap the iterations
        with this, which may end them early too.

    Returns
    -------
    SamplingRun

    Raises
    ------
    PotentialError
        Settings that make no sense, or an end before there is a frame for every block.
    """
    first = int(np.ceil(burn_in * n_iterations))
    if n_iterations - first < n_blocks or n_blocks < 2:
        raise PotentialError(f"{n_iterations} iterations cannot be split into {n_blocks} blocks after the burn-in")
    begin = time.perf_counter()
    positions = molecule.positions if start is None else start
    if not unit.is_quantity(positions):
        positions = np.asarray(positions, dtype=np.float64) * unit.nanometer
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with _silence():
            sampler, reporter = _sampler(
                Path(folder),
                molecule,
                n_iterations,
                steps_per_iteration,
                platform,
                {
                    "timestep": in_femtoseconds(time_step) * unit.femtosecond,
                    "collision_rate": friction / unit.picosecond,
                },
            )
            from openmmtools import states

            np.random.seed(seed % 2**32)
            sampler.create(
                states.ThermodynamicState(simplify(molecule.system, molecule.positions), molecule.temperature),
                states.SamplerState(positions),
                reporter,
                min_temperature=molecule.temperature,
                max_temperature=in_kelvin(t_max) * unit.kelvin,
                n_temperatures=n_replicas,
            )
            sampler.minimize()
        done = 0
        with interruptible_steps(n_iterations, progress, "parallel tempering by openmmtools") as iterations:
            for _ in iterations:
                with _silence():
                    sampler.run(n_iterations=1)
                done += 1
        if done - first < n_blocks:
            raise PotentialError(
                f"ended after {done} iterations: the burn-in takes {first}, {n_blocks} blocks need more"
            )
        with _silence():
            accepted, proposed, state_of = _statistics(reporter, done)
            frames = [_target_frame(reporter, state_of, iteration) for iteration in range(first + 1, done + 1)]
            temperatures = [in_kelvin(state.temperature) for state in sampler._thermodynamic_states]
            reporter.close()
    log_weights = metric_log_weights(molecule, np.array(frames))
    return SamplingRun(
        ensemble=Ensemble(
            positions=np.array(frames, dtype=np.float32),
            log_weights=log_weights,
            kT=molecule.kT,
            molecule=molecule,
            groups=np.arange(len(frames)) * n_blocks // len(frames),
        ),
        method="parallel tempering by openmmtools",
        evaluations=done * (steps_per_iteration + 1) * n_replicas,
        seconds=time.perf_counter() - begin,
        n_steps=done * steps_per_iteration,
        ended_early=done < n_iterations,
        time_step=in_femtoseconds(time_step),
        seed=seed,
        temperatures=np.array(temperatures),
        swap_acceptance=np.diag(accepted, 1) / np.maximum(np.diag(proposed, 1), 1),
        mass_metric=float(log_weights.std()),
        settings={"n_blocks": n_blocks, "friction": friction, "platform": platform},
    )


def _sampler(
    folder: Path, molecule: Any, n_iterations: int, n_steps: int, platform: str, dynamics: dict[str, Any]
) -> tuple[Any, Any]:
    """The sampler, and the reporter that keeps every frame in a temporary file."""
    from openmmtools import cache, mcmc, multistate

    move = mcmc.LangevinSplittingDynamicsMove(
        n_steps=n_steps, reassign_velocities=False, splitting="V R O R V", **dynamics
    )
    sampler = multistate.ParallelTemperingSampler(mcmc_moves=move, number_of_iterations=n_iterations)
    contexts = cache.ContextCache(capacity=None, platform=_platform(platform))
    sampler.energy_context_cache = sampler.sampler_context_cache = contexts
    reporter = multistate.MultiStateReporter(
        str(folder / "run.nc"),
        checkpoint_interval=n_iterations,
        analysis_particle_indices=tuple(range(molecule.system.getNumParticles())),
    )
    return sampler, reporter


def _statistics(reporter: Any, n_iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accepted and proposed swaps between temperatures, and the temperature of every replica at each iteration."""
    accepted, proposed = (np.asarray(x, dtype=np.float64).sum(axis=0) for x in reporter.read_mixing_statistics())
    state_of = np.asarray(reporter.read_replica_thermodynamic_states())[: n_iterations + 1]
    return accepted, proposed, state_of


def _target_frame(reporter: Any, state_of: np.ndarray, iteration: int) -> np.ndarray:
    replica = int(np.nonzero(state_of[iteration] == 0)[0][0])
    states = reporter.read_sampler_states(iteration, analysis_particles_only=True)
    frame: np.ndarray = np.array(states[replica].positions.value_in_unit(unit.nanometer))
    return frame


def _platform(name: str) -> Platform:
    platform = Platform.getPlatformByName(name)
    if name == "CPU":
        platform.setPropertyDefaultValue("Threads", "1")
    return platform


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """openmmtools and pymbar print and log advice on import and while running; none of it is for our user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
