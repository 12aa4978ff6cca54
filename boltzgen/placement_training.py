"""Training the network that places hydrogens, and how far from their minimum it leaves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzgen.ensemble import Ensemble
from boltzgen.errors import CheckpointError, StructureError
from boltzgen.flows.hydrogen_minimization import minimized_variables
from boltzgen.flows.hydrogen_placement import HydrogenNetwork
from boltzgen.flows.placed import PlacedFlow
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.training import CAP_ABOVE_MEDIAN, MAX_GRADIENT_NORM, soft_cap

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["PlacementAccuracy", "PlacementTraining", "fixed_hydrogens", "placement_accuracy", "train_placement"]

N_COMPARED = 1000


@dataclass(frozen=True)
class PlacementAccuracy:
    """How far hydrogens lie from their energy minimum, over heavy-atom configurations.

    The minimum is the one that minimisation from the placed hydrogens leads to.

    Attributes
    ----------
    n, n_clashing : int
        Configurations, and those left out because even their minimum lies more than 100 kT above the median.
    rms_nm : float
        Root mean square distance of a hydrogen from where it is at the minimum.
    mean_excess, median_excess, worst_excess : float
        Energy above the minimum, in kT.
    kT : float
        kJ/mol.
    """

    n: int
    n_clashing: int
    rms_nm: float
    mean_excess: float
    median_excess: float
    worst_excess: float
    kT: float

    def __str__(self) -> str:
        return (
            f"hydrogens {self.rms_nm * 1000:.2f} pm (rms) from their minimum; {self.mean_excess:.3f} kT above it "
            f"on average, {self.median_excess:.3f} kT in the median, {self.worst_excess:.2f} kT at most "
            f"({self.n:,} configurations; {self.n_clashing:,} left out, whose minimum is a clash)"
        )


def train_placement(
    generator: BoltzmannGenerator,
    heavy: Any = None,
    *,
    n_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool | StepsShower = False,
) -> PlacementAccuracy:
    """Train the network that places hydrogens to minimise their energy; the heavy-atom flow is left alone.

    Minimises the mean of U over heavy-atom configurations, with the same cap above the batch median as other losses
    have, so that clashes between heavy atoms do not take over.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="network"``.
    heavy : mdtraj.Trajectory, Ensemble, or (n, N, 3) array or tensor in nm, optional
        Configurations whose heavy atoms are used; drawn from the generator at every step if absent. Of an untrained
        generator many of these clash: train on data, or once the heavy atoms are trained.
    n_steps : int
        Steps of Adam, with the learning rate falling to zero on a cosine.
    seed : int
        Of the choice among the given configurations.
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the training with what the network has learned; or wrap the
        steps with this, which may end them early too.

    Returns
    -------
    PlacementAccuracy
        On 1,000 configurations of the same origin.

    Raises
    ------
    StructureError
        If the generator has no network that places hydrogens.
    """
    training = PlacementTraining(
        generator, heavy, n_steps=n_steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    training.run(progress)
    return training.accuracy()


class PlacementTraining:
    """The training that `train_placement` does, in steps that can be interrupted and gone on with.

    Parameters
    ----------
    generator, heavy, n_steps, batch_size, learning_rate, seed
        See `train_placement`.

    Attributes
    ----------
    step : int
        Steps done.

    Raises
    ------
    StructureError
        If the generator has no network that places hydrogens.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        heavy: Any = None,
        *,
        n_steps: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        flow = generator.flow
        if not isinstance(flow, PlacedFlow) or not isinstance(flow.hydrogens, HydrogenNetwork):
            raise StructureError("only a generator with hydrogens='network' has a placement to train")
        self.generator, self._hydrogens = generator, flow.hydrogens
        self.n_steps, self.batch_size, self.learning_rate = n_steps, batch_size, learning_rate
        self.step = 0
        self._data = None if heavy is None else _heavy_atoms(generator, heavy)
        self._rng = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self._hydrogens.network.parameters(), lr=learning_rate)

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.n_steps

    def run(self, progress: bool | StepsShower = False) -> None:
        """Do the steps that are left, or those that `progress` lets through."""
        with interruptible_steps(self.n_steps - self.step, progress, "placement of hydrogens") as steps:
            for _ in steps:
                self._one_step()
                self.step += 1

    def accuracy(self) -> PlacementAccuracy:
        """On 1,000 configurations of the same origin as those of the training."""
        return placement_accuracy(self.generator, self._batch(N_COMPARED))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, the parameters of the generator apart."""
        return {
            "n_steps": self.n_steps,
            "step": self.step,
            "optimizer": None if self.is_done else self._optimizer.state_dict(),
            "random": self._rng.get_state(),
            "random_of_generator": self.generator.rng.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an equal training.

        Raises
        ------
        CheckpointError
            If it has another number of steps.
        """
        if state["n_steps"] != self.n_steps:
            raise CheckpointError(
                f"the checkpoint places hydrogens in {state['n_steps']} steps, this training in {self.n_steps}"
            )
        self.step = state["step"]
        if self.is_done:
            return
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.set_state(state["random"])
        self.generator.rng.set_state(state["random_of_generator"])

    def _one_step(self) -> None:
        """One step of Adam on the energies of a batch, unless none is finite or the gradient is none to follow."""
        batch = self._batch(self.batch_size)
        energy = self.generator.potential(self._hydrogens.sample(batch)[0]) / self.generator.kT
        finite = torch.isfinite(energy)
        if not bool(finite.any()):
            return
        for group in self._optimizer.param_groups:
            group["lr"] = 0.5 * self.learning_rate * (1 + math.cos(math.pi * self.step / self.n_steps))
        self._optimizer.zero_grad(set_to_none=True)
        soft_cap(energy[finite]).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self._hydrogens.network.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm):
            self._optimizer.step()

    def _batch(self, n: int) -> Tensor:
        """Heavy atoms (n, n_heavy, 3)."""
        if self._data is not None:
            return self._data[torch.randint(len(self._data), (n,), generator=self._rng).to(self._data.device)]
        with torch.no_grad():
            heavy: Tensor = fixed_hydrogens(self.generator).heavy.sample_and_log_prob(n, self.generator.rng)[0]
        return heavy


def placement_accuracy(generator: BoltzmannGenerator, heavy: Tensor) -> PlacementAccuracy:
    """Compare where hydrogens are placed with the minimum next to it.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="network"`` or ``"minimized"``.
    heavy : (n, n_heavy, 3) tensor
        nm.

    Raises
    ------
    StructureError
        If hydrogens are not a function of the heavy atoms, or every configuration clashes.
    """
    flow = fixed_hydrogens(generator)
    variables = flow.hydrogens.variables
    with torch.no_grad():
        placed = flow.hydrogens.sample(heavy, None)[0].double()
    best = minimized_variables(variables, generator.potential, generator.kT, heavy, start=placed)
    lowest = generator.potential(best) / generator.kT
    excess = generator.potential(placed) / generator.kT - lowest
    usable = torch.isfinite(excess) & (lowest < lowest.nanmedian() + CAP_ABOVE_MEDIAN)
    hydrogens = [i for i in range(flow.n_atoms) if i not in set(flow.heavy_atoms.tolist())]
    square = (placed - best)[usable][:, hydrogens].square().sum(2).mean()
    values = excess[usable]
    if not len(values):
        raise StructureError("no configuration has a finite energy: the heavy atoms clash")
    return PlacementAccuracy(
        n=len(values),
        n_clashing=int((~usable).sum()),
        rms_nm=math.sqrt(float(square)),
        mean_excess=float(values.mean()),
        median_excess=float(values.median()),
        worst_excess=float(values.max()),
        kT=generator.kT,
    )


def fixed_hydrogens(generator: BoltzmannGenerator) -> PlacedFlow:
    """The flow of a generator that places hydrogens.

    Raises
    ------
    StructureError
        If it draws them instead, or has no such parts.
    """
    flow = generator.flow
    if not isinstance(flow, PlacedFlow) or flow.is_exact:
        raise StructureError("only generators with hydrogens='network' or 'minimized' place hydrogens")
    return flow


def _heavy_atoms(generator: BoltzmannGenerator, source: Any) -> Tensor:
    flow = fixed_hydrogens(generator)
    values = source.positions if isinstance(source, Ensemble) else getattr(source, "xyz", source)
    positions = torch.as_tensor(values).to(next(flow.parameters()))
    if positions.ndim != 3 or tuple(positions.shape[1:]) != (flow.n_atoms, 3) or not len(positions):
        raise StructureError(f"the data have shape {tuple(positions.shape)}; needed is (n, {flow.n_atoms}, 3) in nm")
    return positions[:, flow.heavy_atoms]
