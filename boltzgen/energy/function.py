"""Any other target: an energy function in torch, a function of one configuration, or an ASE calculator.

A torch function of a batch, differentiated by autograd; the same lines serve a machine-learned potential::

    import boltzgen as bg

    def energy(positions):                                  # (B, N, 3) nm -> (B,) kJ/mol
        distances = (positions[:, 0] - positions[:, 1]).norm(dim=1)
        return 500.0 * (distances - 0.15) ** 2

    potential = bg.energy.FunctionPotential(energy, n_atoms=2)
    generator = bg.BoltzmannGenerator(flow, potential, kT=2.494)

A function of one configuration, from any library that takes numpy arrays; one that raises costs its sample only::

    potential = bg.energy.SampleFunctionPotential(lambda x: engine.energy(x), n_atoms=2, forces=engine.forces)

An ASE calculator (xtb, MACE, GPAW, ...); eV and angstrom are converted::

    from ase.io import read

    atoms = read("molecule.xyz")
    atoms.calc = XTB(method="GFN2-xTB")
    potential = bg.energy.AsePotential(atoms)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.errors import PotentialError

__all__ = ["AsePotential", "FunctionPotential", "SampleFunctionPotential"]

logger = logging.getLogger(__name__)

# Elementary charge times Avogadro's number, both exact in the SI of 2019, in kJ/mol.
KJ_PER_MOL_PER_EV = 1.602176634e-19 * 6.02214076e23 / 1000
NM_PER_ANGSTROM = 0.1

BatchFunction = Callable[[Tensor], Tensor]


class FunctionPotential(BatchedPotential):
    """Energies from a torch function of a batch.

    Parameters
    ----------
    energy : callable
        (B, N, 3) tensor in nm to (B,) tensor in kJ/mol, in the dtype and on the device of the positions. Each sample's
        energy must depend on its own positions only.
    n_atoms : int
    forces : callable, optional
        (B, N, 3) nm to (B, N, 3) kJ/mol/nm; by autograd of the energy if absent.
    terms : mapping, optional
        Functions like ``energy`` by name, for `terms`; the whole energy if absent.
    batch_size : int, optional
        The most samples that the functions get at once.
    dimension : int
        Coordinates per particle, 3 unless the target is no molecule.
    name : str

    Raises
    ------
    PotentialError
        When called, if a function fails, returns the wrong shape or cannot be differentiated.
    """

    def __init__(
        self,
        energy: BatchFunction,
        n_atoms: int,
        *,
        forces: BatchFunction | None = None,
        terms: Mapping[str, BatchFunction] | None = None,
        batch_size: int | None = None,
        dimension: int = 3,
        name: str = "function",
    ) -> None:
        super().__init__(n_atoms)
        if batch_size is not None and batch_size < 1:
            raise PotentialError(f"batch_size must be at least 1, not {batch_size}")
        self.dimension = dimension
        self.name = name
        self.batch_size = batch_size
        self._energy, self._forces, self._terms = energy, forces, dict(terms or {name: energy})

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        self._check(positions)
        with torch.no_grad():
            return {
                name: torch.cat([self._call(function, x, x.shape[:1], name) for x in self._batches(positions)])
                for name, function in self._terms.items()
            }

    def report(self) -> str:
        source = "given by a function" if self._forces else "by autograd"
        return f"{self.name}: energy of {self.n_atoms} atoms from a torch function, forces {source}\n" + _counted(self)

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        parts = [self._evaluate_batch(x, forces) for x in self._batches(positions.detach())]
        energy = torch.cat([part[0] for part in parts])
        return RawEvaluation(energy, torch.cat([part[1] for part in parts]) if forces else None)

    def _evaluate_batch(self, x: Tensor, forces: bool) -> tuple[Tensor, Tensor]:
        if not forces or self._forces is not None:
            with torch.no_grad():
                energy = self._call(self._energy, x, x.shape[:1], "the energy")
                return energy, self._call(self._forces, x, x.shape, "the forces") if forces and self._forces else energy
        with torch.enable_grad():
            x = x.clone().requires_grad_(True)
            energy = self._call(self._energy, x, x.shape[:1], "the energy")
            if not energy.requires_grad:
                raise PotentialError(
                    f"{self.name}: the energy does not depend on the positions through torch (a numpy call or a "
                    "detach inside?); pass forces=..., or use SampleFunctionPotential"
                )
            # A constant may be attached to the graph through parameters of the function alone: then the force is zero.
            (gradient,) = torch.autograd.grad(energy.sum(), x, allow_unused=True)
        return energy.detach(), -gradient if gradient is not None else torch.zeros_like(x)

    def _batches(self, positions: Tensor) -> tuple[Tensor, ...]:
        return positions.split(self.batch_size or max(len(positions), 1))

    def _call(self, function: BatchFunction, x: Tensor, shape: torch.Size, what: str) -> Tensor:
        try:
            value = function(x)
        except Exception as error:
            raise PotentialError(f"{self.name}: {what} failed with {type(error).__name__}: {error}") from error
        if not isinstance(value, Tensor) or value.shape != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PotentialError(f"{self.name}: {what} must be a tensor of shape {tuple(shape)}, not {found}")
        return value.to(x)


class SampleFunctionPotential(BatchedPotential):
    """Energies from a function of one configuration, called for one sample after the other.

    A sample for which the function raises an exception is tried once more, then counted as lost; the last exception is
    kept in `last_error`, logged, and shown by `report`.

    Parameters
    ----------
    energy : callable
        (N, 3) float64 array in nm to a number in kJ/mol.
    n_atoms : int
    forces : callable, optional
        (N, 3) nm to (N, 3) kJ/mol/nm, called after the energy of the same configuration. Without it there are energies
        only, which are all that losses on detached samples need.
    dimension : int
        Coordinates per particle, 3 unless the target is no molecule.
    name : str

    Raises
    ------
    PotentialError
        When called, if a value has the wrong shape, or forces are asked for and there are none.
    """

    def __init__(
        self,
        energy: Callable[[np.ndarray], float],
        n_atoms: int,
        *,
        forces: Callable[[np.ndarray], np.ndarray] | None = None,
        dimension: int = 3,
        name: str = "function",
    ) -> None:
        super().__init__(n_atoms)
        self.dimension = dimension
        self.name = name
        self.last_error: str | None = None
        self._energy, self._forces = energy, forces

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        self._check(positions)
        return {self.name: self._evaluate(positions.detach(), forces=False).energy}

    def report(self) -> str:
        source = "given" if self._forces else "not available"
        text = f"{self.name}: energy of {self.n_atoms} atoms, one configuration at a time; forces {source}\n"
        return text + _counted(self) + (f"\nlast failure: {self.last_error}" if self.last_error else "")

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        if forces and self._forces is None:
            raise PotentialError(f"{self.name} has no forces; pass forces=..., or use a loss that needs energies only")
        x = positions.detach().cpu().double().numpy()
        energy, force = np.full(len(x), np.nan), np.zeros(x.shape if forces else 0)
        lost = np.zeros(len(x), dtype=bool)
        # Coordinates that are not finite are never shown to the function: the result is NaN in any case.
        for row in np.flatnonzero(np.isfinite(x).all(axis=(1, 2))):
            found = self._attempt(x[row], forces) or self._attempt(x[row], forces)
            if found is None:
                lost[row] = True
                continue
            energy[row] = found[0]
            if forces:
                force[row] = found[1]
        if lost.any():
            logger.warning(
                "%s: %d of %d evaluations lost; the last: %s", self.name, lost.sum(), len(x), self.last_error
            )
        return RawEvaluation(
            torch.as_tensor(energy).to(positions),
            torch.as_tensor(force).to(positions) if forces else None,
            torch.as_tensor(lost).to(positions.device),
        )

    def _attempt(self, x: np.ndarray, forces: bool) -> tuple[float, Any] | None:
        """Energy and forces (None if not asked for) of one configuration; None if a function raised."""
        try:
            # Copies, so that a function that works in place changes nothing but its own argument.
            energy = self._energy(x.copy())
            force = self._forces(x.copy()) if forces and self._forces is not None else None
        except Exception as error:
            self.last_error = f"{type(error).__name__}: {error}"
            return None
        if np.size(energy) != 1:
            raise PotentialError(f"{self.name}: the energy must be one number, not of shape {np.shape(energy)}")
        if force is not None and np.shape(force) != x.shape:
            raise PotentialError(f"{self.name}: the forces must have shape {x.shape}, not {np.shape(force)}")
        return float(np.asarray(energy).item()), force


class AsePotential(SampleFunctionPotential):
    """Energies and forces of an ASE ``Atoms`` object with a calculator, eV and angstrom converted.

    ASE itself is not needed by this package: anything with ``set_positions``, ``get_potential_energy``, ``get_forces``
    and a length will do.

    Parameters
    ----------
    atoms : ase.Atoms
        With ``atoms.calc`` set, not periodic, without constraints. It is moved by every evaluation.
    name : str, optional
        The calculator's class if absent.

    Raises
    ------
    PotentialError
        If the atoms have no calculator, are periodic, or constrained.
    """

    def __init__(self, atoms: Any, name: str | None = None) -> None:
        if getattr(atoms, "calc", None) is None:
            raise PotentialError("the atoms have no calculator: set atoms.calc first")
        if np.any(getattr(atoms, "pbc", False)):
            raise PotentialError("the atoms are periodic: set atoms.pbc = False, or use another engine")
        if len(getattr(atoms, "constraints", ())):
            raise PotentialError("the atoms have constraints, which would move them: call atoms.set_constraint() first")
        self.atoms = atoms
        super().__init__(self._ase_energy, len(atoms), forces=self._ase_forces, name=name or type(atoms.calc).__name__)

    def _ase_energy(self, x: np.ndarray) -> float:
        self.atoms.set_positions(x / NM_PER_ANGSTROM)
        return float(self.atoms.get_potential_energy()) * KJ_PER_MOL_PER_EV

    def _ase_forces(self, x: np.ndarray) -> np.ndarray:
        # The positions are those of the energy before, so that a calculator answers from what it has just computed.
        return np.asarray(self.atoms.get_forces()) * (KJ_PER_MOL_PER_EV / NM_PER_ANGSTROM)


def _counted(potential: BatchedPotential) -> str:
    counts = potential.counts
    return (
        f"evaluated: {counts.energy:,} energies, {counts.force:,} of them with forces; "
        f"{counts.infinite} infinite, {counts.lost} lost, {counts.defect} undefined"
    )
