"""Hydrogens as a function of the heavy atoms: what this target does to a result; `placement_training` has the network.

A generator with ``hydrogens="network"`` or ``"minimized"`` has the target exp(-U(h(x_C))/kT) on the heavy atoms x_C
alone: `PlacedPotential` is that U(h(x_C)), for samplers and anything else that takes a potential. The target differs
from the marginal of the Boltzmann distribution by the integral over the hydrogens around h(x_C) (Felardos et al. 2022,
appendix E); `with_placed_hydrogens` shows by how much, on samples of the latter.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.flows.hydrogen_placement import HydrogenFlow
from boltzgen.flows.molecular import MolecularFlow
from boltzgen.flows.placed import PlacedFlow
from boltzgen.placement_training import (
    PlacementAccuracy,
    PlacementTraining,
    fixed_hydrogens,
    placement_accuracy,
    train_placement,
)

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = [
    "PlacedPotential",
    "PlacementAccuracy",
    "PlacementTraining",
    "hydrogen_density",
    "placement_accuracy",
    "regenerated",
    "train_placement",
    "with_placed_hydrogens",
]

BATCH = 1024


class PlacedPotential(BatchedPotential):
    """U(h(x_C)), a potential of the heavy atoms x_C alone: the target of a generator whose hydrogens are fixed.

    The package's samplers move the heavy atoms and return whole molecules::

        run = bg.sampling.parallel_tempering(molecule, PlacedPotential(generator), n_steps=100_000, time_step=2.0)

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="network"`` or ``"minimized"``. Its network is used as it is at the time of each call. An
        alignment penalty is left out: it does not depend on the conformation.

    Attributes
    ----------
    atoms : (n_heavy,) int array
        Indices of the heavy atoms in the molecule.
    target : str
    whole : Potential
        Of all atoms; its counts hold what a minimisation of the hydrogens takes, those of this potential do not.

    Raises
    ------
    StructureError
        If the hydrogens are not a function of the heavy atoms.
    """

    name = "hydrogens placed"

    def __init__(self, generator: BoltzmannGenerator) -> None:
        flow = fixed_hydrogens(generator)
        super().__init__(len(flow.heavy_atoms))
        self.atoms = flow.heavy_atoms.cpu().numpy()
        self.target: str = flow.hydrogens.target
        self._flow, self.whole = flow, generator.potential

    def all_atoms(self, positions: Tensor) -> Tensor:
        """Positions (B, N, 3) in nm for heavy atoms (B, n_heavy, 3), in the precision of the network."""
        return self._flow.hydrogens.sample(positions.to(next(self._flow.parameters())), None)[0]

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        self._check(positions)
        with torch.no_grad():
            return self.whole.terms(self.all_atoms(positions).to(positions))

    def report(self) -> str:
        return f"{self.target}; of all atoms:\n{self.whole.report()}"

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        parts = [self._evaluate_batch(x, forces) for x in positions.detach().split(BATCH)]
        energy = torch.cat([part[0] for part in parts])
        return RawEvaluation(energy, torch.cat([part[1] for part in parts]) if forces else None)

    def _evaluate_batch(self, heavy: Tensor, forces: bool) -> tuple[Tensor, Tensor]:
        """Energies and forces; the latter empty if they are not asked for."""
        with torch.set_grad_enabled(forces):
            heavy = heavy.clone().requires_grad_(forces)
            energy = self.whole(self.all_atoms(heavy).to(heavy))
            slope = torch.autograd.grad(energy.sum(), heavy)[0] if forces else heavy.new_empty(0)
        return energy.detach(), -slope


def hydrogen_density(generator: BoltzmannGenerator) -> HydrogenFlow:
    """q(x_H | x_C) of a trained generator with internal coordinates and ``hydrogens="flow"``.

    For `with_placed_hydrogens`: on samples of this generator itself, the weights are then those of the heavy atoms
    alone, ``exp(-U(h(x_C))/kT) / q(x_C)``.

    Raises
    ------
    StructureError
        If the generator has no flow of hydrogens, or one that knows its temperature.
    """
    flow = generator.flow
    if isinstance(flow, PlacedFlow) and isinstance(flow.hydrogens, HydrogenFlow):
        return flow.hydrogens
    if not isinstance(flow, MolecularFlow) or flow.config.temperature_range is not None:
        raise StructureError("only a generator of one temperature with hydrogens='flow' has a density of hydrogens")
    density = HydrogenFlow(flow.chart, flow.config.hydrogen_reach, **flow.config.hydrogen_sizes())
    density.flow.load_state_dict(flow.hydrogens.state_dict())
    return density.to(next(flow.parameters()))


def regenerated(generator: BoltzmannGenerator, positions: Any, n: int = 1000, *, seed: int = 0) -> Ensemble:
    """One configuration with its hydrogens drawn anew, the heavy atoms where they are.

    Weighted by exp(-U/kT) over the density that the hydrogens were drawn from: the Boltzmann distribution of the
    hydrogens given these heavy atoms. Equivalent hydrogens may change their labels.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="flow"``.
    positions : (N, 3) array or tensor
        nm.
    n : int
        Draws, each one energy evaluation.
    seed : int

    Raises
    ------
    StructureError
        If the generator has no density of hydrogens, or the configuration is not one of its molecule.
    PotentialError
        If no draw has a finite energy: the heavy atoms clash.
    """
    density, like = hydrogen_density(generator), next(generator.flow.parameters())
    whole = torch.as_tensor(positions).to(like)
    molecule = generator.molecule
    if molecule is None or tuple(whole.shape) != (molecule.n_atoms, 3):
        raise StructureError(f"the configuration has shape {tuple(whole.shape)}, not that of the molecule")
    heavy = whole[torch.as_tensor(molecule.heavy_atoms, device=whole.device)].expand(n, -1, -1)
    rng = torch.Generator(device=like.device).manual_seed(seed)
    with torch.no_grad():
        placed, log_q = density.sample(heavy, rng)
    return replace(generator.weigh(placed, log_q), dimension=None)


def with_placed_hydrogens(
    generator: BoltzmannGenerator, ensemble: Ensemble, density: HydrogenFlow | None = None
) -> Ensemble:
    """Samples of the Boltzmann distribution, reweighted to the target that fixed hydrogens have.

    Positions get the hydrogens that the generator places. Weights get the factor
    ``exp(-(U(h(x_C)) - U(x))/kT) q(x_H | x_C)`` with any normalised density q of the hydrogens: its mean over x_H given
    x_C is then exp(-U(h(x_C))/kT) over the marginal of x_C, so the populations of the result are those of the target.
    The nearer q is to the conditional density in the ensemble, the less the weights vary. Equation 32 of the paper
    leaves q out; its estimate then holds the volume that the hydrogens of the sample happen to fill.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="network"`` or ``"minimized"``.
    ensemble : Ensemble
        With energies of the same potential, such as a reference run.
    density : HydrogenFlow, optional
        q, such as `hydrogen_density` of a trained generator; the harmonic approximation with turning methyls uniform if
        absent, which leaves few effective samples.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 32.
    """
    flow = fixed_hydrogens(generator)
    if ensemble.energies is None:
        raise ValueError("the ensemble has no energies to compare with")
    device, dtype = generator.device, next(flow.parameters()).dtype
    config = flow.config
    density = density or HydrogenFlow(flow.chart, config.hydrogen_reach, **config.hydrogen_sizes())
    density = copy.deepcopy(density).to(device=device, dtype=torch.float64)
    before = torch.as_tensor(ensemble.positions, device=device).split(BATCH)
    with torch.no_grad():
        after = [flow.projected(part.to(dtype)) for part in before]
        log_q = torch.cat([density.log_prob(part.double()) for part in before]).cpu().numpy()
    positions = torch.cat(after).cpu().numpy()
    energies = generator.energies(positions)
    change = np.where(np.isnan(energies), np.inf, energies - ensemble.energies) / generator.kT - log_q
    return replace(
        ensemble,
        positions=positions,
        energies=energies,
        log_weights=ensemble.log_weights - change,
        target=flow.hydrogens.target,
        dimension=None if ensemble.dimension is None else ensemble.dimension - flow.chart.dimension_of_hydrogens,
    )
