"""Ensembles: configurations with weights, the molecule they belong to, and what can be asked of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.diagnostics import Coverage, Verdict, effective_sample_fraction, normalized_weights, pareto_k, verdict
from boltzgen.ensemble_files import load_ensemble, save_ensemble
from boltzgen.errors import EstimateError, StructureError
from boltzgen.uncertainty import KINDS, Sampling

if TYPE_CHECKING:
    from boltzgen.free_energy import Estimate, FreeEnergies, LogZ, Profile
    from boltzgen.free_energy.observables import Observable
    from boltzgen.molecule import Molecule

__all__ = ["ALL_ATOMS", "RIGID_MOTIONS", "Ensemble"]

ALL_ATOMS = "exp(-U/kT) of all atoms"  # the target of an ensemble that names none

_KIND_NAMES = {"independent": "independent", "chain": "of a chain", "particles": "of a particle system"}
RIGID_MOTIONS = 6


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Configurations with log-weights.

    Attributes
    ----------
    positions : (n, N, 3) array
        nm.
    log_weights : (n,) array
        log p~ - log q, not normalised; -inf where the energy is infinite. Never clipped.
    energies : (n,) array, optional
        kJ/mol.
    log_q : (n,) array, optional
        Log-density of the generator; absent for reference samples.
    molecule : Molecule, optional
        Needed for basins, trajectories and pictures.
    kT : float
        kJ/mol.
    groups : (n,) int array, optional
        Labels of mutually independent groups: copies of one sample, chains, or repeats of a particle system.
    kind : {"independent", "chain", "particles"}
        How samples hang together; a chain where there are groups and nothing is said. Samples of a chain stand in the
        order of time within their group.
    evaluations : int, optional
        Energy evaluations that the samples cost, where it is known.
    record : dict
        How they were made, in the words of the sampler.
    log_rigid_integral : (n,) array, optional
        For samples of a target with an alignment penalty: log of the integral of exp(-penalty) over all rigid motions
        of each configuration; see `unbiased`.
    target : str
        What the weights are of, where it is not the Boltzmann distribution of all atoms.
    dimension : int, optional
        Number of coordinates that the target is a density of: Z of the weights is in nm to this power. Absent where it
        is not known.
    n_infinite, n_lost, n_defects : int
        Samples of infinite energy or outside the domain (kept, with weight zero); evaluations lost (left out of n);
        undefined energies or densities (left out of n; the verdict is then "do not use").
    """

    positions: np.ndarray
    log_weights: np.ndarray
    kT: float
    energies: np.ndarray | None = None
    log_q: np.ndarray | None = None
    molecule: Molecule | None = None
    groups: np.ndarray | None = None
    log_rigid_integral: np.ndarray | None = None
    target: str = ""
    n_infinite: int = 0
    n_lost: int = 0
    n_defects: int = 0
    kind: str = ""
    evaluations: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    dimension: int | None = None

    def __post_init__(self) -> None:
        kind = self.kind or ("independent" if self.groups is None else "chain")
        if kind not in KINDS:
            raise EstimateError(f"kind must be {', '.join(KINDS)}, not {kind!r}")
        object.__setattr__(self, "kind", kind)

    @property
    def sampling(self) -> Sampling:
        """How the samples depend on each other."""
        return Sampling(self.kind, self.groups)

    def __len__(self) -> int:
        return len(self.log_weights)

    @property
    def n(self) -> int:
        """Number of samples, those of weight zero included."""
        return len(self)

    @property
    def weights(self) -> np.ndarray:
        """Normalised weights (n,)."""
        return normalized_weights(self.log_weights)

    @property
    def ess_fraction(self) -> float:
        """Kish's effective sample size divided by n."""
        return effective_sample_fraction(self.log_weights)

    @property
    def pareto_k(self) -> float:
        """Shape of the tail of the weights; above 0.7 they are not to be trusted."""
        return pareto_k(self.log_weights)

    @property
    def max_weight(self) -> float:
        """Share of the heaviest sample."""
        return float(self.weights.max())

    @property
    def log_z(self) -> LogZ:
        """log Z of the domain, with its 95 % interval; of the weights of `unbiased`."""
        from boltzgen.free_energy import log_z

        return log_z(self)

    def unbiased(self) -> Ensemble:
        """The same samples with weights of exp(-U/kT), the alignment penalty taken out; itself where there is none.

        The penalty makes conformations likely in proportion to the integral G of exp(-penalty) over their rigid
        motions (derived in `boltzgen.energy.orientation`), so each weight is divided by G. The log Z of the result is
        with respect to positions modulo rigid motion, six coordinates fewer, the same as that of internal coordinates.
        """
        if self.log_rigid_integral is None:
            return self
        return replace(
            self,
            log_weights=self.log_weights - self.log_rigid_integral,
            log_rigid_integral=None,
            dimension=None if self.dimension is None else self.dimension - RIGID_MOTIONS,
        )

    def verdict(self, coverages: Mapping[str, Coverage] | None = None) -> Verdict:
        """What can be claimed of this ensemble; missing modes stay unchecked without coverages by reference samples."""
        return verdict(
            self.log_weights,
            self.n_defects,
            coverages,
            kind=self.kind,
            groups=self.groups,
            energies=self.energies,
        )

    def free_energy(self, basins: Mapping[str, str]) -> FreeEnergies:
        """Free energy of each basin, given as ``{"C7ax": "0 < phi < 150"}``, against all else."""
        from boltzgen.free_energy import basin_free_energies

        return basin_free_energies(self, basins)

    def expectation(self, observable: Observable, **options: Any) -> Estimate:
        """Average of a variable, a region or a function; see `boltzgen.free_energy.expectation`."""
        from boltzgen.free_energy import expectation

        return expectation(self, observable, **options)

    def profile(self, variable: Observable, second: Observable | None = None, **options: Any) -> Profile:
        """Free-energy profile along one variable or two; see `boltzgen.free_energy.profile`."""
        from boltzgen.free_energy import profile

        return profile(self, variable, second, **options)

    def at_temperature(self, temperature: Any) -> Ensemble:
        """The same samples with the weights of another temperature; see `boltzgen.free_energy.at_temperature`."""
        from boltzgen.free_energy import at_temperature

        return at_temperature(self, temperature).ensemble

    def resample(self, n: int, seed: int = 0) -> Ensemble:
        """An equally weighted ensemble of n configurations, drawn in proportion to the weights (with repeats).

        Copies of one independent sample share a group, so that errors count them as one; chains stay in the order of
        time. Equal weights do not know log Z, so the result has no dimension.
        """
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), size=n, p=self.weights))
        picked = self[chosen]
        groups = chosen if picked.groups is None and self.kind == "independent" else picked.groups
        return replace(picked, log_weights=np.zeros(n), log_q=None, groups=groups, dimension=None)

    @classmethod
    def concatenate(cls, ensembles: Sequence[Ensemble]) -> Ensemble:
        """Ensembles of one target joined into one; also ``first + second``.

        Weights are taken as they are: those of generators share the normalisation of p~, whatever the generator.
        Evaluations add up. The kinds must be equal, and groups of different ensembles stay different.

        Raises
        ------
        EstimateError
            If there are none, or temperature, kind, target, dimension or number of atoms differ.
        """
        if not ensembles:
            raise EstimateError("there are no ensembles to join")
        first = ensembles[0]
        for one in ensembles[1:]:
            for what in ("kT", "kind", "target", "dimension"):
                if getattr(one, what) != getattr(first, what):
                    raise EstimateError(
                        f"ensembles of different {what} cannot be joined: {getattr(first, what)!r} and "
                        f"{getattr(one, what)!r}"
                    )
            if one.positions.shape[1:] != first.positions.shape[1:]:
                raise EstimateError("ensembles of different numbers of atoms cannot be joined")
            if (one.log_rigid_integral is None) != (first.log_rigid_integral is None):
                raise EstimateError("join ensembles with and without an alignment penalty by ens.unbiased()")
        pick = lambda name: _joined([getattr(one, name) for one in ensembles])
        known = [one.evaluations for one in ensembles if one.evaluations is not None]
        return replace(
            first,
            **{name: pick(name) for name in ("positions", "log_weights", "energies", "log_q", "log_rigid_integral")},
            groups=_joined_groups(ensembles),
            evaluations=sum(known) if len(known) == len(ensembles) else None,
            record={},
            **{name: sum(getattr(one, name) for one in ensembles) for name in ("n_infinite", "n_lost", "n_defects")},
        )

    def __add__(self, other: Ensemble) -> Ensemble:
        return Ensemble.concatenate([self, other])

    def __iter__(self) -> Iterator[Ensemble]:
        """Ensembles of one sample each."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: Any) -> Ensemble:
        rows = [rows] if isinstance(rows, (int, np.integer)) else rows
        pick = lambda values: None if values is None else values[rows]
        return replace(
            self,
            positions=self.positions[rows],
            log_weights=self.log_weights[rows],
            energies=pick(self.energies),
            log_q=pick(self.log_q),
            groups=pick(self.groups),
            log_rigid_integral=pick(self.log_rigid_integral),
            n_infinite=int(np.isneginf(self.log_weights[rows]).sum()),
        )

    @property
    def trajectory(self) -> Any:
        """The configurations as an ``mdtraj.Trajectory`` (weights are not part of it)."""
        import mdtraj

        return mdtraj.Trajectory(self.positions, self.require_molecule().mdtraj_topology)

    def ramachandran(self, **options: Any) -> Any:
        """Weighted free-energy map over phi and psi; see `boltzgen.plotting.ramachandran`."""
        from boltzgen.plotting import ramachandran

        return ramachandran(self, **options)

    def view(self, **options: Any) -> Any:
        """The samples in 3D; see `boltzgen.viewing.view`."""
        from boltzgen.viewing import view

        return view(self, **options)

    def save(self, folder: str | os.PathLike[str], format: str = "dcd") -> Path:
        """Write ``topology.pdb``, ``samples.<format>`` and ``weights.npz`` (log-weights, energies, ...) into a folder.

        Each file is written under a temporary name and then renamed.

        Parameters
        ----------
        format : {"dcd", "nc", "xtc", "pdb", "npz"}
            DCD and NetCDF keep positions in single precision, XTC rounds them to 1e-3 nm and PDB to 1e-4 nm (so that
            energies are no longer those of the file), NPZ keeps them as they are and needs no molecule.

        Raises
        ------
        OutputError
            If the folder cannot be written, or the format is unknown.
        """
        return save_ensemble(self, folder, format)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], molecule: Molecule | None = None) -> Ensemble:
        """Read what `save` wrote.

        Parameters
        ----------
        molecule : Molecule, optional
            Needed for basins, trajectories and pictures.

        Raises
        ------
        OutputError
            If files are missing or damaged, or do not fit the molecule.
        """
        return load_ensemble(folder, molecule)

    def to_mdtraj(self) -> Any:
        """The configurations as an ``mdtraj.Trajectory`` (weights are not part of it)."""
        return self.trajectory

    def to_pandas(self, *variables: str) -> Any:
        """A pandas DataFrame with one row for each sample: weight, log-weight, energy, log q, group, and variables.

        Parameters
        ----------
        *variables : str
            As in `boltzgen.collective_variables.parse_variable`, for instance "phi", "psi", "rg"; regions give true or
            false.

        Raises
        ------
        SelectionError
            If a variable does not parse.
        """
        import pandas

        from boltzgen.free_energy.observables import observe

        columns: dict[str, Any] = {"weight": self.weights, "log_weight": self.log_weights}
        for name, values in (("energy_kJ_per_mol", self.energies), ("log_q", self.log_q), ("group", self.groups)):
            if values is not None:
                columns[name] = values
        return pandas.DataFrame(columns | {text: observe(self, text).values for text in variables})

    def require_molecule(self) -> Molecule:
        """The molecule.

        Raises
        ------
        StructureError
            If the ensemble belongs to none.
        """
        if self.molecule is None:
            raise StructureError("this ensemble belongs to no molecule, so it has no topology")
        return self.molecule

    def _summary(self) -> list[tuple[str, str]]:
        """What it is, in a few lines."""
        units = "" if self.groups is None else f" in {self.sampling.n_groups:,} groups"
        rows = [("samples", f"{len(self):,} ({_KIND_NAMES[self.kind]}{units})")]
        if self.molecule is not None:
            rows.append(("molecule", repr(self.molecule)))
        rows.append(("temperature", f"kT = {self.kT:.4g} kJ/mol"))
        if self.target:
            rows.append(("target", self.target))
        if len(self) and np.isfinite(self.log_weights.max()):
            tail = f", Pareto k {self.pareto_k:.2f}" if self.kind == "independent" else ""
            rows.append(("weights", f"ESS {self.ess_fraction:.1%}{tail}, largest {self.max_weight:.2g}"))
        bad = (("of infinite energy", self.n_infinite), ("lost", self.n_lost), ("defects", self.n_defects))
        counted = ", ".join(f"{count:,} {what}" for what, count in bad if count)
        if counted:
            rows.append(("bad samples", counted))
        if self.evaluations is not None:
            rows.append(("cost", f"{self.evaluations:,} energy evaluations"))
        return rows

    def __repr__(self) -> str:
        return f"<Ensemble: {'; '.join(f'{name} {text}' for name, text in self._summary())}>"

    def __str__(self) -> str:
        rows = [*self._summary(), ("verdict", str(self.verdict()))]
        return "\n".join(f"{name:<13}{text}" for name, text in rows)

    def _repr_html_(self) -> str:
        rows = [*self._summary(), ("verdict", str(self.verdict()))]
        left = "style='text-align:left'"
        cells = "".join(f"<tr><th {left}>{name}</th><td {left}>{escape(text)}</td></tr>" for name, text in rows)
        return f"<table><caption>Ensemble</caption>{cells}</table>"


def _joined(parts: Sequence[Any]) -> Any:
    return None if any(part is None for part in parts) else np.concatenate(parts)


def _joined_groups(ensembles: Sequence[Ensemble]) -> np.ndarray | None:
    """Labels that stay different between ensembles; None where all samples of all of them are independent."""
    if all(one.groups is None and one.kind == "independent" for one in ensembles):
        return None
    labels, offset = [], 0
    for one in ensembles:
        if one.groups is None:
            own = np.arange(len(one)) if one.kind == "independent" else np.zeros(len(one), dtype=np.int64)
        else:
            own = np.unique(one.groups, return_inverse=True)[1]
        labels.append(own + offset)
        offset += int(own.max()) + 1 if len(own) else 0
    return np.concatenate(labels)
