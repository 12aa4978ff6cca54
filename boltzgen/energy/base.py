"""What every potential is: batched energies in kJ/mol, forces, and honest counts of bad samples."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from boltzgen.errors import PotentialError

if TYPE_CHECKING:
    from boltzgen.energy.explanation import Explanation

__all__ = ["BatchedPotential", "EvaluationCounts", "Potential", "RawEvaluation", "Status"]

# Atoms closer than this count as coincident: an infinite energy rather than an undefined one.
COINCIDENT_NM = 1e-6
# kJ/mol; opposite charges without a repulsive wall have no lowest energy: below this, atoms may coincide.
COLLAPSED = -1e6


class Status(IntEnum):
    """What became of one sample."""

    OK = 0
    INFINITE = 1  # overlap, or an energy beyond the range of the dtype: E = +inf, weight 0, counts in n
    LOST = 2  # the engine failed twice: E = NaN, to be removed from n and reported
    DEFECT = 3  # NaN or infinite coordinates, or NaN out of finite ones: E = NaN, "do not use"


@dataclass
class EvaluationCounts:
    """Running totals over the life of a potential.

    Attributes
    ----------
    energy : int
        Configurations evaluated, with or without forces.
    force : int
        Of these, the configurations evaluated with forces.
    infinite, lost, defect : int
        Samples that ended with that `Status`.
    """

    energy: int = 0
    force: int = 0
    infinite: int = 0
    lost: int = 0
    defect: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, energy: int = 0, force: int = 0, infinite: int = 0, lost: int = 0, defect: int = 0) -> None:
        """Add to the totals; safe to call from several threads."""
        with self._lock:
            self.energy += energy
            self.force += force
            self.infinite += infinite
            self.lost += lost
            self.defect += defect

    def __getstate__(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("energy", "force", "infinite", "lost", "defect")}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


@runtime_checkable
class Potential(Protocol):
    """Anything that gives energies (kJ/mol) and forces (kJ/mol/nm) for batches of positions (nm)."""

    n_atoms: int
    counts: EvaluationCounts
    name: str

    def __call__(self, positions: Tensor) -> Tensor: ...
    def energy_and_forces(self, positions: Tensor) -> tuple[Tensor, Tensor]: ...
    def terms(self, positions: Tensor) -> dict[str, Tensor]: ...
    def status(self, positions: Tensor) -> Tensor: ...
    def explain(self, positions: Any, n: int = 5) -> Explanation: ...
    def capped(self, max_gradient: float) -> BatchedPotential: ...
    def report(self) -> str: ...


@dataclass
class RawEvaluation:
    """What an engine returned, before bad samples are sorted out.

    Attributes
    ----------
    energy : (B,) tensor
        kJ/mol.
    forces : (B, N, 3) tensor or None
        kJ/mol/nm.
    lost : (B,) bool tensor or None
        Samples for which the engine failed.
    """

    energy: Tensor
    forces: Tensor | None = None
    lost: Tensor | None = None


class BatchedPotential:
    """Base class: shapes, differentiability, the policy for bad samples and the counts.

    A subclass implements `_evaluate(positions, forces)` for detached (B, N, 3) positions, `terms` and `report`.
    """

    name = "potential"
    dimension = 3  # coordinates per particle; a target in d dimensions is one particle with d coordinates: (B, 1, d)

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms = n_atoms
        self.counts = EvaluationCounts()

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies of a batch, differentiable once with respect to the positions.

        Parameters
        ----------
        positions : (B, N, 3) tensor
            nm, float32 or float64, any device.

        Returns
        -------
        (B,) tensor
            kJ/mol; +inf for overlaps, NaN for lost samples and defects (see `Status`); their gradient is zero.

        Raises
        ------
        PotentialError
            Wrong shape or dtype; and, in the backward pass, when a second derivative is asked for.
        """
        self._check(positions)
        if torch.is_grad_enabled() and positions.requires_grad:
            energy: Tensor = _Energy.apply(positions, self)
            return energy
        return self._finish(positions.detach(), forces=False)[0]

    def energy_and_forces(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) in kJ/mol and forces (B, N, 3) in kJ/mol/nm, without autograd; zero force for bad samples."""
        self._check(positions)
        energy, forces, _ = self._finish(positions.detach(), forces=True)
        assert forces is not None
        return energy, forces

    def status(self, positions: Tensor) -> Tensor:
        """`Status` code per sample, (B,) int64; evaluates the energies (and counts them)."""
        self._check(positions)
        return self._finish(positions.detach(), forces=False)[2]

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Energy per force of the System, {name: (B,) tensor in kJ/mol}; raw, without the policy for bad samples."""
        raise NotImplementedError

    def report(self) -> str:
        """A few lines of plain text: what evaluates the energy, how well it was verified, what was counted."""
        raise NotImplementedError

    def explain(self, positions: Any, n: int = 5) -> Explanation:
        """Energy of one configuration, (N, 3) or (1, N, 3) in nm, by term; potentials of a System name the worst atoms.

        Raises
        ------
        PotentialError
            Not one configuration of this molecule.
        """
        from boltzgen.energy.explanation import Explanation, one_configuration

        x = one_configuration(positions, self.n_atoms)
        return Explanation(float(self(x)), {name: float(value) for name, value in self.terms(x).items()}, ())

    def capped(self, max_gradient: float) -> BatchedPotential:
        """The same energy with no term pulling an atom harder than `max_gradient` (kJ/mol/nm), for losses only.

        Raises
        ------
        PotentialError
            This potential has no terms of a force field; those of a System have.
        """
        raise PotentialError(f"{self.name} has no terms to cap one by one; potentials of an OpenMM System have")

    def close(self) -> None:
        """Free what is held outside of this process; the potential can still be used."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        raise NotImplementedError

    def _evaluate_carefully(self, positions: Tensor) -> Tensor:
        """Energies of the few samples that came out NaN, in the widest range the engine has."""
        return self._evaluate(positions, forces=False).energy

    def _check(self, positions: Tensor) -> None:
        if not isinstance(positions, Tensor):
            raise PotentialError(f"positions must be a torch tensor in nm, not {type(positions).__name__}")
        if positions.ndim != 3 or tuple(positions.shape[1:]) != (self.n_atoms, self.dimension):
            raise PotentialError(
                f"positions must have shape (B, {self.n_atoms}, {self.dimension}), in nm, "
                f"but have {tuple(positions.shape)}"
            )
        if positions.dtype not in (torch.float32, torch.float64):
            raise PotentialError(f"positions must be float32 or float64, not {positions.dtype}")

    def _finish(self, positions: Tensor, forces: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Evaluate, apply the policy for bad samples, count; returns energy, forces, status."""
        with torch.no_grad():
            raw = self._evaluate(positions, forces)
            energy, force = raw.energy, raw.forces
            status = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
            self.counts.add(energy=len(positions), force=len(positions) if forces else 0)
            if not bool((torch.isfinite(energy) & (energy > COLLAPSED)).all()):
                energy, status = self._sort_out(positions, raw)
            # One sum tells whether any force is not finite, at a tenth of the cost of asking each.
            if force is not None and not (bool(torch.isfinite(force.sum())) and bool((status == Status.OK).all())):
                good = torch.isfinite(force).flatten(1).all(1) & (status == Status.OK)
                force = torch.where(good[:, None, None], force, torch.zeros_like(force))
        return energy, force, status

    def _sort_out(self, positions: Tensor, raw: RawEvaluation) -> tuple[Tensor, Tensor]:
        """Tell infinite energies, lost evaluations and defects apart; neighbours in the batch are untouched."""
        energy = raw.energy.clone()
        status = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        finite_input = torch.isfinite(positions).flatten(1).all(1)
        lost = torch.zeros_like(finite_input) if raw.lost is None else raw.lost & finite_input
        suspect = (torch.isnan(energy) | (energy <= COLLAPSED)) & finite_input & ~lost
        if bool(suspect.any()):
            rows = suspect.nonzero().squeeze(1)
            again = self._evaluate_carefully(positions[rows])
            coincident = _smallest_distance(positions[rows]) < COINCIDENT_NM
            again = torch.where(coincident, torch.full_like(again, torch.inf), again)
            energy[rows] = again.to(energy.dtype)
        status[energy == torch.inf] = Status.INFINITE
        status[torch.isnan(energy) | (energy == -torch.inf)] = Status.DEFECT
        status[lost] = Status.LOST
        status[~finite_input] = Status.DEFECT
        energy[status >= Status.LOST] = torch.nan
        self.counts.add(
            infinite=int((status == Status.INFINITE).sum()),
            lost=int((status == Status.LOST).sum()),
            defect=int((status == Status.DEFECT).sum()),
        )
        return energy, status


def _smallest_distance(positions: Tensor) -> Tensor:
    """Smallest distance between two atoms, (B,) in nm; samples one by one, since they are few."""
    smallest = [
        torch.nn.functional.pdist(x.double()).min() if len(x) > 1 else x.new_tensor(torch.inf) for x in positions
    ]
    return torch.stack(smallest).to(positions.device)


class _Energy(torch.autograd.Function):
    """Energy with the forces kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, potential: BatchedPotential) -> Tensor:
        energy, forces = potential.energy_and_forces(positions)
        ctx.save_for_backward(positions, forces)
        return energy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        positions, forces = ctx.saved_tensors
        return _ForceProduct.apply(grad, forces, positions), None


class _ForceProduct(torch.autograd.Function):
    """-F times the incoming gradient; refuses to be differentiated again.

    It takes the positions so that autograd knows that its result depends on them, and asks.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, forces: Tensor, positions: Tensor) -> Tensor:
        # An incoming gradient of a bad sample may be NaN or infinite; its force is zero and so is the product.
        bad = ~torch.isfinite(grad)
        product = -torch.where(bad, torch.zeros_like(grad), grad)[:, None, None] * forces
        return torch.where((bad[:, None, None]) & (forces != 0), torch.full_like(product, torch.nan), product)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise PotentialError(
            "second derivatives of a potential are not available; use losses that need the forces only, "
            "or finite differences of energy_and_forces"
        )
