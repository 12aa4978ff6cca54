"""Where a training starts, and which basins it can know of: a short hot run, or configurations that were given.

A generator trained on the energy alone finds what its hottest state reaches. A look from outside costs little: walkers
at high temperature, started from the one known structure, are configurations to begin with; cooled to the target, they
show which combinations of torsions there are, which become basins to follow through the training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openmm import unit

from boltzgen.collective_variables import parse_basin
from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule
    from boltzgen.progress import StepsShower
    from boltzgen.sampling import SamplingRun

__all__ = ["Exploration", "explore", "torsion_basins"]

HOT = 1200 * unit.kelvin
WALKERS = 256
SAVE_STEPS = 100
BINS = 72
SMOOTHED = 15.0  # degrees; standard deviation of the kernel under which valleys are looked for
VALLEY = 0.6  # a valley between two states has less than this share of the lower of their peaks
EMPTY = 1e-6  # of the highest peak
MOST_BASINS = 16
FEWEST_SHARE = 0.005  # of the samples in a combination of torsions that is worth following


@dataclass(frozen=True)
class Exploration:
    """What was looked at before a training, and what was seen.

    Attributes
    ----------
    how : str
        In words: for the history and the report.
    ensemble : Ensemble
        The configurations to begin with, at the high temperature where they come from a hot run.
    basins : {name: expression}
        Combinations of torsion states that were seen, most frequent first; empty where no torsion has two states.
    shares : {name: float}
        Share of what was seen in each: of the cooled walkers, or of the configurations that were given. No estimate of
        a population.
    evaluations : int
        Energy evaluations that the look cost.
    """

    how: str
    ensemble: Ensemble = field(repr=False)
    basins: dict[str, str]
    shares: dict[str, float]
    evaluations: int = 0

    def missed(self, populations: dict[str, float], floor: float = 1e-3) -> list[str]:
        """Basins seen here that hold less than a floor in a generator's samples."""
        return [name for name in self.basins if not populations.get(name, 0.0) >= floor]

    def __str__(self) -> str:
        rows = [f"  {name}: {self.shares[name]:.1%}" for name in self.basins]
        return "\n".join([f"{self.how}; {len(self.basins)} basins", *rows])


def explore(
    molecule: Molecule,
    potential: Potential | None = None,
    *,
    temperature: Any = HOT,
    budget: int = 256_000,
    seed: int = 0,
    progress: bool | StepsShower = False,
) -> Exploration:
    """A short run of many walkers at a high temperature, from the molecule's one structure, which are then cooled.

    Configurations that left the domain (a cis amide, the other hand of a centre) are dropped, and counted in ``how``.

    Parameters
    ----------
    temperature : Quantity or float (K)
    budget : int
        Energy evaluations with forces: half of them hot, half at the molecule's temperature.
    progress : bool or callable
        As in `boltzgen.sampling.parallel_tempering`, for either half.

    Raises
    ------
    PotentialError
        If the dynamics blew up.
    StructureError
        If no configuration stayed in the domain.
    """
    from boltzgen.sampling.domain import domain_of
    from boltzgen.sampling.run import in_kelvin

    inside = domain_of(molecule)
    hot = _walk(molecule.with_temperature(temperature), potential, budget // 2, seed, None, progress)
    kept = hot.ensemble[np.flatnonzero(inside(hot.ensemble.positions.astype(np.float64)))]
    last = hot.ensemble.positions[-WALKERS:]
    last = last[inside(last.astype(np.float64))]
    if not len(last):
        raise StructureError("no walker of the hot run stayed in the domain: run it at a lower temperature")
    cold = _walk(molecule, potential, budget // 2, seed + 1, last, progress)
    evaluations = hot.evaluations + cold.evaluations
    outside = 1 - len(kept) / len(hot.ensemble)
    how = (
        f"{WALKERS} walkers at {in_kelvin(temperature):g} K from one structure ({outside:.2%} of their configurations "
        f"outside the domain), {len(last)} of them cooled to the target; {evaluations:,} evaluations"
    )
    return _look(how, kept, cold.ensemble.positions, molecule, evaluations)


def _walk(
    molecule: Molecule,
    potential: Potential | None,
    budget: int,
    seed: int,
    start: np.ndarray | None,
    progress: bool | StepsShower,
) -> SamplingRun:
    """Langevin dynamics at the molecule's temperature, from its structure or from one configuration for each walker."""
    from boltzgen.sampling import parallel_tempering

    n_walkers = WALKERS if start is None else len(start)
    return parallel_tempering(
        molecule,
        potential,
        n_steps=max(budget // n_walkers, 4 * SAVE_STEPS),
        n_replicas=1,
        n_walkers=n_walkers,
        exchange_interval=SAVE_STEPS,
        save_interval=SAVE_STEPS,
        burn_in=0.5,
        seed=seed,
        start=start,
        progress=progress,
    )


def exploration_of(data: Any, molecule: Molecule) -> Exploration:
    """What configurations that a user gives (Exploration, Ensemble, mdtraj trajectory, (n, N, 3) array in nm) show."""
    if isinstance(data, Exploration):
        return data
    if isinstance(data, Ensemble):
        ensemble = data
    else:
        positions = np.asarray(getattr(data, "xyz", data), dtype=np.float32)
        ensemble = Ensemble(positions, np.zeros(len(positions)), molecule=molecule, kT=molecule.kT)
    return _look(f"{len(ensemble):,} configurations that were given", ensemble, ensemble.positions, molecule, 0)


def _look(how: str, ensemble: Ensemble, seen: np.ndarray, molecule: Molecule, evaluations: int) -> Exploration:
    basins = torsion_basins(seen, molecule)
    shares = {
        name: float(np.asarray(parse_basin(expression, molecule).contains(seen)).mean())
        for name, expression in basins.items()
    }
    return Exploration(how, ensemble, basins, shares, evaluations)


def torsion_basins(positions: np.ndarray, molecule: Molecule, torsions: Sequence[str] | None = None) -> dict[str, str]:
    """Basins as combinations of the states of named torsions, from configurations in which they all occur.

    Each torsion is cut in the valleys of its histogram (smoothed by 15 degrees) that hold less than 0.6 of the lower of
    the peaks beside them; a basin is a combination of the arcs between the cuts. The most populated are kept: sixteen
    at most, with at least half a percent of the configurations.

    Parameters
    ----------
    positions : (n, N, 3) array, nm
    torsions : sequence of str, optional
        Names; all phi, psi and chi of the molecule if absent.

    Returns
    -------
    {name: expression}
        Such as ``{"phi -145..5, psi 95..215": "-145 < phi < 5 and 95 < psi < 215"}``.
    """
    from boltzgen.sampling import torsion_angles

    names = [name for name in molecule.torsions if not name.startswith("omega")] if torsions is None else list(torsions)
    if not names:
        return {}
    frames = torch.as_tensor(np.asarray(positions)).permute(2, 1, 0)
    angles = torsion_angles(frames, [molecule.torsions[name] for name in names]).numpy()
    arcs = [_arcs(row) for row in angles]
    states = np.stack([_state_of(row, cut) for row, cut in zip(angles, arcs, strict=True)])
    combinations, counts = np.unique(states, axis=1, return_counts=True)
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k] >= FEWEST_SHARE * len(positions)]
    basins = {}
    for k in order[:MOST_BASINS]:
        parts = [(name, arc[state]) for name, arc, state in zip(names, arcs, combinations[:, k], strict=True) if arc]
        if parts:
            label = ", ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in parts)
            basins[label] = " and ".join(f"{low:g} < {name} < {high:g}" for name, (low, high) in parts)
    return basins if len(basins) > 1 else {}


def _arcs(angles: np.ndarray) -> list[tuple[float, float]]:
    """Arcs (low, high) in degrees between the valleys, their middles in [-180, 180); none for one state."""
    step = 360 / BINS
    density = np.histogram(angles, bins=BINS, range=(-180, 180))[0].astype(float)
    distance = np.minimum(np.arange(BINS), BINS - np.arange(BINS)) * step
    kernel = np.exp(-0.5 * (distance / SMOOTHED) ** 2)
    smooth = np.fft.irfft(np.fft.rfft(density) * np.fft.rfft(kernel / kernel.sum()), BINS)
    smooth[smooth < EMPTY * smooth.max()] = 0.0  # rounding of the transform has minima of its own
    cuts = _valleys(smooth)
    if len(cuts) < 2:
        return []
    edges = [round(-180 + (k + 0.5) * step, 1) for k in cuts]
    arcs = itertools.pairwise([*edges, edges[0] + 360])
    return [(low - 360, high - 360) if low + high >= 360 else (low, high) for low, high in arcs]


def _valleys(density: np.ndarray) -> list[int]:
    """Bins of the minima that are deep enough, the shallowest taken away one at a time."""
    n = len(density)
    valleys = []
    for k in range(n):
        if density[k] < density[(k + 1) % n]:
            flat = next((j for j in range(n) if density[k - j - 1] != density[k]), n)
            if density[k - flat - 1] > density[k]:
                valleys.append((k - flat // 2) % n)  # the middle of a flat stretch
    valleys.sort()
    while len(valleys) > 1:
        between = [
            density[np.arange(low, high + n * (high <= low) + 1) % n].max()
            for low, high in itertools.pairwise([*valleys, valleys[0]])
        ]
        depth = [density[k] / max(min(between[i - 1], between[i]), 1e-12) for i, k in enumerate(valleys)]
        shallowest = int(np.argmax(depth))
        if depth[shallowest] < VALLEY:
            break
        valleys.pop(shallowest)
    return valleys


def _state_of(angles: np.ndarray, arcs: list[tuple[float, float]]) -> np.ndarray:
    """Which arc each angle lies in, (n,)."""
    if not arcs:
        return np.zeros(len(angles), dtype=int)
    lows, highs = np.array(arcs).T[:, :, None]
    return np.asarray(((angles - lows) % 360 < highs - lows).argmax(axis=0))
