"""Parallel tempering of one molecule under two energy functions, analysed together by pymbar's MBAR."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from boltzgen.collective_variables import parse_variable
from boltzgen.energy import Potential
from boltzgen.ensemble import Ensemble
from boltzgen.free_energy.perturbation import energies_under
from boltzgen.molecule import Molecule
from boltzgen.sampling import domain_of, parallel_tempering

__all__ = ["Tempered", "jackknife", "solve", "temper"]

N_BLOCKS = 16  # of ladders, for the jackknife


@dataclass(frozen=True)
class Tempered:
    """Frames of all temperatures of one run.

    Attributes
    ----------
    kT : (R,) array
        kJ/mol, the target first.
    n_each : int
        Frames of each temperature; samples stand temperature by temperature.
    own, other : (n,) arrays
        kJ/mol, under the energy function of the run and the other one.
    phi, psi : (n,) arrays
        Degrees.
    inside : (n,) bool array
        Whether a frame lies in the domain of the structure.
    ladders : (n,) int array
        Which independent ladder a frame is of.
    evaluations, cross : int
        Of the run, each with forces and burn-in included; and under the other energy function.
    seconds : float
    """

    kT: np.ndarray
    n_each: int
    own: np.ndarray
    other: np.ndarray
    phi: np.ndarray
    psi: np.ndarray
    inside: np.ndarray
    ladders: np.ndarray
    evaluations: int
    cross: int
    seconds: float

    def save(self, path: Path) -> None:
        """As NPZ."""
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, **vars(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tempered:
        """What `save` wrote."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] if stored[name].ndim else stored[name].item() for name in stored.files})

    def without(self, ladders: np.ndarray) -> Tempered:
        """The run without some ladders."""
        keep = ~np.isin(self.ladders, ladders)
        arrays = {name: getattr(self, name)[keep] for name in ("own", "other", "phi", "psi", "inside", "ladders")}
        return Tempered(**{**vars(self), **arrays, "n_each": int(keep.sum()) // len(self.kT)})


def temper(molecule: Molecule, other: Potential, evaluations: float, seed: int, *, walkers: int = 64) -> Tempered:
    """Run parallel tempering, and evaluate its frames under the other energy function."""
    replicas = 8
    run = parallel_tempering(
        molecule,
        n_steps=round(evaluations / (replicas * walkers)),
        n_replicas=replicas,
        n_walkers=walkers,
        save_interval=500,
        seed=seed,
        all_temperatures=True,
    )
    inside = domain_of(molecule)
    torsions = [np.concatenate([_torsion(name, one) for one in run.replicas]) for name in ("phi", "psi")]
    return Tempered(
        kT=np.array([one.kT for one in run.replicas]),
        n_each=len(run.replicas[0]),
        own=np.concatenate([one.energies for one in run.replicas]).astype(np.float64),
        other=np.concatenate([energies_under(other, one) for one in run.replicas]),
        phi=torsions[0],
        psi=torsions[1],
        inside=np.concatenate([inside(one.positions) for one in run.replicas]),
        ladders=np.concatenate([one.groups for one in run.replicas]),
        evaluations=run.evaluations,
        cross=sum(len(one) for one in run.replicas),
        seconds=run.seconds,
    )


def _torsion(name: str, ensemble: Ensemble) -> np.ndarray:
    return np.asarray(parse_variable(name, ensemble.require_molecule())(ensemble.positions))


def solve(first: Tempered, second: Tempered, edges: np.ndarray) -> dict[str, np.ndarray]:
    """MBAR over all temperatures of both runs.

    Returns
    -------
    dict
        ``delta_f``: free energy of the second energy function less that of the first at the lowest temperature, in the
        domain, kT; ``basin``: population of 0 < phi < 150 under the first, in the domain; ``profile``: populations
        (m, m) of the cells of phi and psi under the first, in the domain.
    """
    from pymbar import MBAR

    logging.getLogger("pymbar").setLevel(logging.ERROR)
    of_first = np.concatenate([first.own, second.other])
    of_second = np.concatenate([first.other, second.own])
    u_kn = np.concatenate([of_first / first.kT[:, None], of_second / second.kT[:, None]])
    counts = np.repeat([first.n_each, second.n_each], [len(first.kT), len(second.kT)])
    solved = MBAR(u_kn, counts)
    weights = solved.weights()
    inside = np.concatenate([first.inside, second.inside])
    target, there = weights[:, 0] * inside, weights[:, len(first.kT)] * inside
    phi, psi = (np.concatenate([getattr(one, name) for one in (first, second)]) for name in ("phi", "psi"))
    share = target / target.sum()
    profile = np.histogram2d(phi, psi, bins=(edges, edges), weights=share)[0]
    difference = solved.f_k[len(first.kT)] - solved.f_k[0] - math.log(there.sum() / target.sum())
    return {"delta_f": np.array(difference), "basin": share[(phi > 0) & (phi < 150)].sum(), "profile": profile}


def jackknife(
    first: Tempered, second: Tempered, edges: np.ndarray, n_blocks: int = N_BLOCKS
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`solve`, with half-widths of 95 % intervals of ``delta_f`` and of the log of both populations.

    Ladders are independent of each other and frames of one are not: MBAR is solved again without each block of ladders
    of both runs.
    """
    whole = solve(first, second, edges)
    blocks = np.array_split(np.unique(first.ladders), n_blocks)
    parts = [solve(first.without(block), second.without(block), edges) for block in blocks]
    quantile = student_t.ppf(0.975, n_blocks - 1)
    scale = {"delta_f": lambda value: value, "basin": _log_odds, "profile": _log}
    half = {}
    for name, of in scale.items():
        values = np.array([of(part[name]) for part in parts])
        with np.errstate(invalid="ignore"):  # a cell that only one block has seen is not known
            spread = np.square(values - values.mean(axis=0)).sum(axis=0)
        half[name] = quantile * np.sqrt((n_blocks - 1) / n_blocks * spread)
    return whole, half


def _log(value: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(value)


def _log_odds(value: np.ndarray) -> np.ndarray:
    return _log(value) - _log(1 - value)
