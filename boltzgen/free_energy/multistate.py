"""Free energies between any set of energy functions from any set of ensembles: MBAR, and u_kn for other programs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.diagnostics import Verdict
from boltzgen.errors import EstimateError
from boltzgen.free_energy.acceptance_ratio import LEAST_OVERLAP, own_energies
from boltzgen.free_energy.estimate import EnergyEstimate, judged
from boltzgen.free_energy.temperature import GAS_CONSTANT
from boltzgen.progress import shown_steps
from boltzgen.uncertainty import Sampling, combined, deviation

if TYPE_CHECKING:
    from boltzgen.energy import Potential
    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule

__all__ = ["Multistate", "ReducedEnergies", "mbar", "reduced_energies"]

FAR = 1e5  # kT; stands for an infinite reduced energy, for solvers that cannot do with infinities


@dataclass(frozen=True, eq=False)
class ReducedEnergies:
    """Reduced energies of all samples in all states.

    Attributes
    ----------
    u_kn : (K, N) array
        U/kT of each sample in each state; for the state of a generator -log q.
    n_k : (K,) int array
        Samples drawn from each state, in this order along N; zero for states that none were drawn from.
    names : tuple of str
    sampling : tuple of Sampling
        Of each ensemble with samples, in the order along N.
    kT : float
        kJ/mol.
    """

    u_kn: np.ndarray
    n_k: np.ndarray
    names: tuple[str, ...]
    sampling: tuple[Sampling, ...]
    kT: float

    def to_pymbar(self) -> dict[str, np.ndarray]:
        """Arguments of ``pymbar.MBAR``; samples of chains are correlated, which pymbar's own errors do not know."""
        return {"u_kn": self.u_kn, "N_k": self.n_k}

    def to_alchemlyb(self) -> Any:
        """The ``u_nk`` table of alchemlyb: a pandas DataFrame with the index (time, fep-lambda), in units of kT.

        States are numbered from 0 in the order of `names`.
        """
        import pandas

        states = np.repeat(np.arange(len(self.n_k)), self.n_k).astype(float)
        time = np.concatenate([np.arange(n) for n in self.n_k]).astype(float)
        index = pandas.MultiIndex.from_arrays([time, states], names=["time", "fep-lambda"])
        table = pandas.DataFrame(self.u_kn.T, index=index, columns=np.arange(len(self.n_k), dtype=float))
        table.attrs = {"temperature": self.kT / GAS_CONSTANT, "energy_unit": "kT"}
        return table


def reduced_energies(
    ensembles: Sequence[Ensemble],
    energies: Sequence[Molecule | Potential | None] | None = None,
    generators: Sequence[BoltzmannGenerator | None] | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ReducedEnergies:
    """Reduced energies of the samples of all ensembles in all their states.

    MBAR wants samples drawn from the states themselves. Equally weighted ensembles (of a sampler) are. Weighted samples
    of a generator are drawn from the generator: with it given, its density is a state of its own (named "q of ..."),
    known to be normalised, which makes all free energies absolute. Other weighted samples are resampled to as many
    equally weighted ones as they are worth, of which copies count as one in errors.

    Parameters
    ----------
    ensembles : sequence of Ensemble
        One for each state, of the same atoms at the same temperature.
    energies : sequence of Molecule, Potential or None, optional
        Energy function of each ensemble; that of its molecule where None.
    generators : sequence of BoltzmannGenerator or None, optional
        That drew the ensemble.
    names : sequence of str, optional
        Of the states; "state 0" and so on if absent.
    seed : int
        Of the resampling.
    progress : bool
        Show which of the states the samples are evaluated in.

    Raises
    ------
    EstimateError
        If numbers or temperatures differ, an energy function is not known, or a generator has an alignment penalty.
    """
    n_states = len(ensembles)
    functions = list(energies) if energies is not None else [None] * n_states
    makers = list(generators) if generators is not None else [None] * n_states
    labels = list(names) if names is not None else [f"state {k}" for k in range(n_states)]
    if n_states < 2 or not len(functions) == len(makers) == len(labels) == n_states:
        raise EstimateError("two ensembles or more are needed, and as many energies, generators and names if given")
    if any(not math.isclose(one.kT, ensembles[0].kT, rel_tol=1e-9) for one in ensembles):
        raise EstimateError("the ensembles have different temperatures; reweight with at_temperature first")
    pairs = zip(ensembles, makers, strict=True)
    if any(maker is not None and (maker.alignment is not None or one.target) for one, maker in pairs):
        raise EstimateError("the density of a Cartesian or placing generator is not one of shapes: leave it out")
    drawn = [
        one.unbiased() if maker is not None else _equally_weighted(one.unbiased(), seed + k)
        for k, (one, maker) in enumerate(zip(ensembles, makers, strict=True))
    ]
    kT = drawn[0].kT
    jobs: list[Callable[[Ensemble], np.ndarray]] = []
    counts, row_names = [], []
    for k, (owner, function, maker) in enumerate(zip(drawn, functions, makers, strict=True)):
        function = function if function is not None else owner.molecule
        jobs.append(partial(_reduced, function, owner, kT))
        counts.append(0 if maker is not None else len(owner))
        row_names.append(labels[k])
    for k, maker in enumerate(makers):
        if maker is not None:
            jobs.append(partial(_surprise, maker))
            counts.append(len(drawn[k]))
            row_names.append(f"q of {labels[k]}")
    steps = range(len(jobs))
    shown = shown_steps(steps, "energies of all samples in all states") if progress else steps
    rows = [np.concatenate([jobs[k](one) for one in drawn]) for k in shown]
    # Along N the samples follow the order of the states that they were drawn from.
    order = [k for k, maker in enumerate(makers) if maker is None] + [k for k, maker in enumerate(makers) if maker]
    ends = np.cumsum([0, *(len(one) for one in drawn)])
    columns = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in order])
    u_kn = np.nan_to_num(np.stack(rows)[:, columns], nan=FAR, posinf=FAR, neginf=-FAR)
    sampling = tuple(drawn[k].sampling for k in order)
    return ReducedEnergies(np.clip(u_kn, -FAR, FAR), np.array(counts), tuple(row_names), sampling, kT)


def _reduced(function: Molecule | Potential | None, owner: Ensemble, kT: float, one: Ensemble) -> np.ndarray:
    """U/kT of samples (n,) in a state."""
    return np.asarray(own_energies(one, function, one is owner)) / kT


def _surprise(maker: BoltzmannGenerator, one: Ensemble) -> np.ndarray:
    """-log q of samples (n,), which is -log q - U/kT with no energy; +inf outside the generator's domain."""
    return np.asarray(maker.log_weights_of(one.positions, np.zeros(len(one))))


@dataclass(frozen=True, eq=False)
class Multistate:
    """Free energies of several states from all samples together.

    Attributes
    ----------
    reduced : ReducedEnergies
    f_k : (K,) array
        Reduced free energies; that of the first generator is zero where there is one, else that of the first state.
    overlap : (K, K) array
        Probability that a sample of one state is found in another, for the states with samples.
    verdict : Verdict
    """

    reduced: ReducedEnergies
    f_k: np.ndarray
    overlap: np.ndarray
    verdict: Verdict
    _contributions: np.ndarray

    def difference(self, first: int | str, second: int | str) -> EnergyEstimate:
        """Free energy of the second state minus that of the first.

        Parameters
        ----------
        first, second : int or str
            Number or name of a state.
        """
        i, j = self._number(first), self._number(second)
        ends = np.cumsum([0, *(n for n in self.reduced.n_k if n)])
        parts = []
        for start, end, sampling in zip(ends[:-1], ends[1:], self.reduced.sampling, strict=True):
            change = sampling.unit_sums(self._contributions[start:end, j] - self._contributions[start:end, i])
            n = len(change)
            parts.append(deviation(change * math.sqrt(n / max(n - 1, 1)), sampling))
        interval = combined(*parts).about(float(self.f_k[j] - self.f_k[i]))
        return EnergyEstimate(
            name=f"F({self.reduced.names[j]}) - F({self.reduced.names[i]})",
            value=interval.value,
            low=interval.low,
            high=interval.high,
            kT=self.reduced.kT,
            method=f"MBAR, {interval.method}",
            n_samples=int(self.reduced.n_k.sum()),
            diagnostics={"smallest overlap": _least_link(self.overlap)},
            verdict=judged(self.verdict, interval),
        )

    def _number(self, state: int | str) -> int:
        if isinstance(state, int):
            return state
        if state not in self.reduced.names:
            raise EstimateError(f"there is no state {state!r}; known: {', '.join(self.reduced.names)}")
        return self.reduced.names.index(state)

    def __str__(self) -> str:
        names = self.reduced.names
        rows = [str(self.difference(0, k)).split("\n")[0] for k in range(1, len(names))]
        return "\n".join([*rows, f"verdict: {self.verdict}"])

    __repr__ = __str__


def mbar(
    ensembles: Sequence[Ensemble],
    energies: Sequence[Molecule | Potential | None] | None = None,
    generators: Sequence[BoltzmannGenerator | None] | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Multistate:
    """Multistate Bennett acceptance ratio through pymbar.

    The values are pymbar's. The errors are those of the estimating equations with each unit of each ensemble as one
    contribution, so chains, repeats and copies of one sample are what they are, and no subsampling is needed.

    Parameters
    ----------
    ensembles, energies, generators, names, seed, progress
        As in `reduced_energies`.

    References
    ----------
    Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008); for the errors, Huber, Proc. Fifth Berkeley Symp. 1, 221
    (1967), and Geyer, Technical Report 568, University of Minnesota (1994), for several samples.
    """
    reduced = reduced_energies(ensembles, energies, generators, names=names, seed=seed, progress=progress)
    f_k = _solve(reduced)
    sampled = np.nonzero(reduced.n_k)[0]
    origin = next((k for k in range(len(ensembles), len(f_k))), 0)
    f_k = f_k - f_k[origin]
    weights = _weights(reduced, f_k)
    overlap = (weights[:, sampled].T @ weights[:, sampled]) * reduced.n_k[sampled]
    verdicts = [one.verdict() for one in ensembles]
    worst = next((one for one in verdicts if one.verdict == "do not use"), verdicts[0])
    if worst.verdict != "do not use" and _least_link(overlap) < LEAST_OVERLAP:
        worst = Verdict("do not use", f"the states fall into parts that overlap by only {_least_link(overlap):.1%}")
    return Multistate(reduced, f_k, overlap, worst, _contributions(reduced, weights, sampled))


def _solve(reduced: ReducedEnergies) -> np.ndarray:
    """Reduced free energies (K,) by pymbar, without what it logs of JAX and of the solvers that it tries in turn."""
    logger = logging.getLogger("pymbar")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from pymbar import MBAR

        return np.asarray(MBAR(**reduced.to_pymbar()).f_k, dtype=np.float64)
    finally:
        logger.setLevel(level)


def _weights(reduced: ReducedEnergies, f_k: np.ndarray) -> np.ndarray:
    """Weights (N, K) of the samples in each state, ``exp(f - u) / sum_k N_k exp(f_k - u_k)``."""
    exponent = f_k[:, None] - reduced.u_kn
    sampled = reduced.n_k > 0
    largest = exponent[sampled].max(axis=0)
    mixture = largest + np.log((reduced.n_k[sampled, None] * np.exp(exponent[sampled] - largest)).sum(axis=0))
    return np.exp(exponent - mixture).T


def _contributions(reduced: ReducedEnergies, weights: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """Contribution (N, K) of each sample to each reduced free energy, up to a constant common to all states.

    Linearised about the solution, ``df_k = -sum_n (W_nk - mean over its ensemble) + sum_s N_s (W^T W)_ks df_s``, and
    the free energies of the states with samples solve it among themselves.
    """
    counts = reduced.n_k[sampled]
    centred = weights.copy()
    ends = np.cumsum([0, *counts])
    for start, end in pairwise(ends):
        centred[start:end] -= centred[start:end].mean(axis=0)
    coupling = (weights.T @ weights[:, sampled]) * counts  # (K, S)
    among = np.eye(len(sampled)) - coupling[sampled]
    of_sampled = -centred[:, sampled] @ np.linalg.pinv(among, rcond=1e-10).T
    return np.asarray(-centred + of_sampled @ coupling.T)


def _least_link(overlap: np.ndarray) -> float:
    """One minus the second eigenvalue of the overlap matrix: zero where states fall into parts that do not overlap."""
    if len(overlap) < 2:
        return 1.0
    values = np.sort(np.linalg.eigvals(overlap).real)
    return float(1 - values[-2])


def _equally_weighted(ensemble: Ensemble, seed: int) -> Ensemble:
    if ensemble.log_weights.max() - ensemble.log_weights.min() < 1e-9:
        return replace(ensemble, log_weights=np.zeros(len(ensemble)))
    return ensemble.resample(max(int(ensemble.ess_fraction * len(ensemble)), 1), seed=seed)
