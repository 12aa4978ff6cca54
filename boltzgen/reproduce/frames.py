"""Frames of a molecule by sampling a potential of it, in parts that can be interrupted; and shares of modes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.errors import PotentialError
from boltzgen.molecule import Molecule
from boltzgen.progress import shown_steps
from boltzgen.reproduce.curves import kept_arrays, stoppable
from boltzgen.reproduce.molecule_settings import FlattenedSampling, Sampling
from boltzgen.sampling import SamplingRun, TorsionBias, domain_of, flattened_sampling, learn_bias, parallel_tempering
from boltzgen.sampling.rounds import digest

__all__ = ["Array", "Frames", "Share", "sampled_frames"]

Array = np.ndarray
NO_BIAS = np.zeros(0)
SPREADING_ROUNDS = 20  # between which it can be interrupted
LEAST_ACCEPTED = 0.2  # of the trajectories; at fewer, frames are few and far between


@dataclass(frozen=True)
class Share:
    """Share of a mode in percent, and its standard error from independent ladders."""

    percent: float
    error: float

    def __str__(self) -> str:
        return f"{self.percent:.2f} ± {self.error:.2f} %"


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a sampler, within the domain of the structure.

    Attributes
    ----------
    positions : (n, N, 3) array
        nm, of all atoms.
    energies : (n,) array
        kJ/mol.
    log_weights : (n,) array
        Zeros from parallel tempering without a bias.
    groups : (n,) array
        Which of the independent ladders or walkers each frame is of.
    evaluations : int
    seconds : float
    outside : float
        Share of frames that were left out, with a cis amide for instance.
    grid : (n, n) array
        kJ/mol; the bias on phi and psi that the frames were sampled under. Empty if without.
    """

    positions: Array
    energies: Array
    log_weights: Array
    groups: Array
    evaluations: int
    seconds: float
    outside: float
    grid: Array = field(default_factory=lambda: NO_BIAS)

    @property
    def effective(self) -> float:
        """Kish's effective number of frames; correlation between them is not in it."""
        return len(self.energies) * effective_sample_fraction(self.log_weights)

    def rows(self, rows: Array) -> Frames:
        """Some of the frames."""
        names = ("positions", "energies", "log_weights", "groups")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def share(self, inside: Array, log_weights: Array | None = None) -> Share:
        """Weighted share of some frames, with the standard error of a ratio from the ladders.

        Parameters
        ----------
        inside : (n,) bool array
        log_weights : (n,) array, optional
            Added to those of the frames.
        """
        share, deviations = self.deviations(inside, log_weights)
        return Share(100 * share, 100 * self.error(deviations))

    def change(self, inside: Array, log_weights: Array) -> Share:
        """By how much further weights change a share, with the standard error of the difference; as `share`."""
        (before, without), (after, weighted) = (self.deviations(inside, more) for more in (None, log_weights))
        return Share(100 * (after - before), 100 * self.error(weighted - without))

    def deviations(self, inside: Array, log_weights: Array | None = None) -> tuple[float, Array]:
        """The weighted share, and what every frame adds to its deviation: ``w (inside - share) / sum(w)``, (n,)."""
        total = self.log_weights if log_weights is None else self.log_weights + log_weights
        weights = np.exp(total - total.max())
        weights /= weights.sum()
        share = float(weights @ inside)
        return share, weights * (inside - share)

    def error(self, deviations: Array) -> float:
        """Standard error of something that every frame adds ``deviations`` (n,) to, from independent ladders."""
        _, ladder = np.unique(self.groups, return_inverse=True)
        sums = np.bincount(ladder, deviations)
        return float(np.sqrt(len(sums) / max(len(sums) - 1, 1) * np.square(sums).sum()))


def sampled_frames(
    molecule: Molecule,
    potential: Any,
    sampling: Sampling | FlattenedSampling,
    identity: Mapping[str, Any],
    path: Path | None,
    start: Array | None = None,
    grid: Array = NO_BIAS,
) -> Frames:
    """Frames by sampling a potential of the molecule, or those that were made before.

    Parameters
    ----------
    molecule : Molecule
    potential : Potential
        Its energy, or a `PartialPotential`.
    sampling : Sampling or FlattenedSampling
    identity : {name: number or string}
        All else that the frames depend on, "seed" among it.
    path : Path, optional
        Where they are kept; files for parts of the work lie beside it until they are.
    start : (n_walkers, N, 3) array, optional
        nm, of `Sampling`; the molecule's positions if absent.
    grid : (n, n) array
        kJ/mol; the bias on phi and psi that `Sampling` is under, if any.

    Raises
    ------
    PotentialError
        If next to no trajectory of hybrid Monte Carlo was accepted.
    CheckpointError
        If the file is damaged, or of another identity.
    RunInterrupted
        After Ctrl-C or SIGTERM.
    """
    known = {**identity, **asdict(sampling)}

    def part(label: str) -> Path | None:
        if path is None:
            return None
        return path.with_name(f"{path.stem}-{digest(str(known))}-{label.replace(' ', '-')}{path.suffix}")

    def make() -> dict[str, Array]:
        run = _run(molecule, potential, sampling, int(identity["seed"]), start, grid, part)
        ensemble = run.ensemble
        inside = np.asarray(domain_of(molecule)(ensemble.positions))
        return {
            "positions": ensemble.positions[inside],
            "energies": np.asarray(ensemble.energies)[inside],
            "log_weights": np.asarray(ensemble.log_weights, dtype=np.float64)[inside],
            "groups": np.asarray(ensemble.groups)[inside],
            "grid": np.asarray(run.settings.get("grid", grid)),
            "cost": np.array([run.evaluations, run.seconds, ensemble.weights @ ~inside]),
        }

    made = kept_arrays(path, known, make)
    if path is not None:
        for left in path.parent.glob(f"{path.stem}-{digest(str(known))}-*"):
            left.unlink()
    evaluations, seconds, outside = made.pop("cost").tolist()
    return Frames(**made, evaluations=int(evaluations), seconds=seconds, outside=outside)


def _run(
    molecule: Molecule,
    potential: Any,
    sampling: Sampling | FlattenedSampling,
    seed: int,
    start: Array | None,
    grid: Array,
    part: Callable[[str], Path | None],
) -> SamplingRun:
    """Frames by parallel tempering, from a start and with a bias on phi and psi if they are given; or by flattening.

    ``part`` gives a file for each part of the work, from which it goes on after an interruption.

    Raises
    ------
    PotentialError
        If next to no trajectory of hybrid Monte Carlo was accepted.
    RunInterrupted
        After Ctrl-C or SIGTERM.
    """

    def sampled(label: str, sample: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with stoppable(part(label)) as interrupts:
            shown = lambda steps: shown_steps(steps, label, interrupts.requested)
            return sample(molecule, *args, **options, progress=shown, checkpoint=part(label))

    torsions, options = molecule.torsions, asdict(sampling)
    if isinstance(sampling, Sampling):
        options["bias"] = TorsionBias((torsions["phi"], torsions["psi"]), grid) if grid.size else None
        options |= {"seed": seed, "start": start}
        run: SamplingRun = sampled("parallel tempering", parallel_tempering, potential, **options)
        if (run.move_acceptance < LEAST_ACCEPTED).any():
            least = f"{100 * run.move_acceptance.min():.0f} %"
            raise PotentialError(f"{least} of the trajectories of {sampling} were accepted: shorter steps are needed")
        return run
    n_learning, n_spreading = options.pop("n_learning"), options.pop("n_spreading")
    learning = {"n_steps": n_learning, "n_walkers": sampling.n_walkers, "seed": seed}
    bias = sampled("learning the bias", learn_bias, potential, **learning)
    spreading = options | {"n_steps": n_spreading, "save_interval": max(n_spreading // SPREADING_ROUNDS, 1)}
    first = sampled("spreading", flattened_sampling, potential, bias, seed=seed + 2, **spreading)
    start = first.ensemble.positions[-sampling.n_walkers :]
    run = sampled("flattened sampling", flattened_sampling, potential, bias, seed=seed + 1, start=start, **options)
    evaluations, seconds = (
        sum(getattr(one, cost) for one in (bias, first, run)) for cost in ("evaluations", "seconds")
    )
    return replace(run, evaluations=evaluations, seconds=seconds, settings={**run.settings, "grid": bias.grid})
