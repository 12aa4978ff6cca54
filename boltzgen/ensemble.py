"""Ensembles: configurations with weights, the molecule they belong to, and what can be asked of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.diagnostics import Coverage, Verdict, effective_sample_fraction, normalized_weights, pareto_k, verdict
from boltzgen.errors import EstimateError, OutputError, StructureError
from boltzgen.uncertainty import KINDS, Sampling

if TYPE_CHECKING:
    from boltzgen.free_energy import FreeEnergies, LogZ
    from boltzgen.molecule import Molecule

__all__ = ["Ensemble"]


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
        Labels of mutually independent groups; None means that all samples are independent of each other.
    log_rigid_integral : (n,) array, optional
        For samples of a target with an alignment penalty: log of the integral of exp(-penalty) over all rigid motions
        of each configuration; see `unbiased`.
    target : str
        What the weights are of, where it is not the Boltzmann distribution of all atoms.
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
        """log Z of the domain, with its 95 % interval."""
        from boltzgen.free_energy import log_z

        return log_z(self)

    def unbiased(self) -> Ensemble:
        """The same samples with weights of exp(-U/kT), the alignment penalty taken out; itself where there is none.

        The penalty makes conformations likely in proportion to the integral G of exp(-penalty) over their rigid
        motions (derived in `boltzgen.energy.orientation`), so each weight is divided by G. The log Z of the result is
        with respect to positions modulo rigid motion in nm^(3N-6), the same as that of internal coordinates.
        """
        if self.log_rigid_integral is None:
            return self
        return replace(self, log_weights=self.log_weights - self.log_rigid_integral, log_rigid_integral=None)

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

    def resample(self, n: int, seed: int = 0) -> Ensemble:
        """An equally weighted ensemble of n configurations, drawn in proportion to the weights (with repeats)."""
        chosen = np.random.default_rng(seed).choice(len(self), size=n, p=self.weights)
        picked = self[chosen]
        # Copies of one frame are one independent sample.
        groups = np.asarray(chosen) if picked.groups is None else picked.groups
        return replace(picked, log_weights=np.zeros(n), log_q=None, groups=groups)

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

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``topology.pdb``, ``samples.dcd`` and ``weights.npz`` (log-weights, energies, log q) into a folder.

        Each file is written under a temporary name and then renamed.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        folder = Path(folder)
        trajectory = self.trajectory
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _atomic(folder / "topology.pdb", lambda path: trajectory[0].save_pdb(str(path)))
            _atomic(folder / "samples.dcd", lambda path: _save_dcd(trajectory, path))
            arrays = {
                "log_weights": self.log_weights,
                "energies_kJ_per_mol": self.energies,
                "log_q": self.log_q,
                "log_rigid_integral": self.log_rigid_integral,
            }
            present: dict[str, Any] = {name: values for name, values in arrays.items() if values is not None}
            _atomic(folder / "weights.npz", lambda path: np.savez_compressed(path, **present))
        except OSError as error:
            raise OutputError(f"cannot write the samples to {folder}: {error}") from error
        return folder

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

    def __repr__(self) -> str:
        molecule = "" if self.molecule is None else f" of {self.molecule!r}"
        bad = f", {self.n_defects} defects" if self.n_defects else ""
        quality = f"ESS {self.ess_fraction:.1%}, Pareto k {self.pareto_k:.2f}"
        target = f", target: {self.target}" if self.target else ""
        return f"<Ensemble: {len(self):,} samples{molecule}, {quality}{bad}{target}>"


def _save_dcd(trajectory: Any, path: Path) -> None:
    try:
        trajectory.save_dcd(str(path))
    except TypeError as error:  # how a failed write comes out of mdtraj 1.11
        raise OSError("the trajectory could not be written; is the disk full?") from error
    if path.stat().st_size < trajectory.n_frames * 3 * (4 * trajectory.n_atoms + 8):
        raise OSError("the trajectory is incomplete; is the disk full?")


def _atomic(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
