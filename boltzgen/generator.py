"""The Boltzmann generator: a flow and the potential that it is weighted by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule

__all__ = ["BoltzmannGenerator", "Flow"]

SAMPLE_BATCH = 4096


class Flow(Protocol):
    """What a flow must offer: any ``nn.Module`` with the first two methods can be trained and sampled."""

    def sample_and_log_prob(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Samples (B, ...) and their log-density (B,), both differentiable in the parameters."""

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,) of samples."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class BoltzmannGenerator:
    """Draws configurations from a flow and weights them by a potential.

    Parameters
    ----------
    flow : Flow
        Any module with ``sample_and_log_prob`` and ``log_prob``.
    potential : Potential
        Energies in kJ/mol of what the flow generates.
    molecule : Molecule, optional
        Gives kT, and names to basins and files.
    kT : float, optional
        kJ/mol; the molecule's if absent, else 1 (energies in units of kT).
    seed : int
        Of the random numbers that samples are made from.

    Attributes
    ----------
    rng : torch.Generator
        The one source of randomness; its state is part of a checkpoint.
    """

    def __init__(
        self,
        flow: Flow,
        potential: Potential,
        *,
        molecule: Molecule | None = None,
        kT: float | None = None,
        seed: int = 0,
    ) -> None:
        self.flow = flow
        self.potential = potential
        self.molecule = molecule
        self.kT = kT if kT is not None else (molecule.kT if molecule is not None else 1.0)
        self.seed = seed
        self.rng = torch.Generator(device=self.device).manual_seed(seed)

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        potential: Potential | None = None,
        *,
        coordinates: str = "internal",
        hydrogens: str = "flow",
        config: GeneratorConfig | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> BoltzmannGenerator:
        """An untrained generator for a molecule, from its topology and force field alone.

        Free torsions start uniform; stiff coordinates start as the harmonic approximation at the minimised structure.

        Parameters
        ----------
        potential : Potential, optional
            Chosen by `boltzgen.energy.potential` if absent.
        coordinates : {"internal"}
        hydrogens : {"flow"}
            Hydrogens are drawn from a conditional flow with exact density.
        config : GeneratorConfig, optional
        seed : int
            Of the initial weights and of the samples.

        Raises
        ------
        StructureError
            If the molecule has no internal coordinates to generate.
        """
        from boltzgen.coordinates.chart import CoordinateChart

        if coordinates != "internal" or hydrogens != "flow":
            raise ValueError(
                f"coordinates={coordinates!r}, hydrogens={hydrogens!r}: this version has coordinates='internal' "
                "and hydrogens='flow'"
            )
        config = config or GeneratorConfig()
        if potential is None:
            from boltzgen.energy import potential as choose_potential

            potential = choose_potential(molecule)
        chart = CoordinateChart.for_molecule(
            molecule, potential, omega=config.omega, fold_symmetry=config.fold_symmetry
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            flow = MolecularFlow(chart, config)
        return cls(flow.to(device=device, dtype=dtype), potential, molecule=molecule, seed=seed)

    @property
    def device(self) -> torch.device:
        return next(self.flow.parameters()).device

    @property
    def coordinates(self) -> CoordinateChart:
        """The internal coordinates, with ``table()`` and ``domain()``."""
        if not isinstance(self.flow, MolecularFlow):
            raise AttributeError("only a molecular flow has internal coordinates")
        return self.flow.chart

    def sample_and_log_prob(self, n_samples: int) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm and their exact log-density (B,), without gradient."""
        with torch.no_grad():
            parts = [
                self.flow.sample_and_log_prob(min(SAMPLE_BATCH, n_samples - start), self.rng)
                for start in range(0, n_samples, SAMPLE_BATCH)
            ]
        return torch.cat([x for x, _ in parts]), torch.cat([log_q for _, log_q in parts])

    def log_prob(self, positions: Tensor) -> Tensor:
        """Exact log-density (B,) of positions (B, N, 3) in nm; -inf outside the domain of the generator."""
        log_q: Tensor = self.flow.log_prob(positions)
        return log_q

    def sample(self, n_samples: int) -> Ensemble:
        """Independent weighted samples.

        Energies are evaluated in float64 at the very positions that are returned.
        """
        positions, log_q = self.sample_and_log_prob(n_samples)
        return self.weigh(positions, log_q)

    def weigh(self, positions: Tensor, log_q: Tensor) -> Ensemble:
        """Ensemble of generated positions with their exact log-weights ``-U/kT - log q``.

        An infinite energy is a weight of zero and counts in n; a lost evaluation is left out and counted; an undefined
        energy or density is left out, counted, and makes the verdict "do not use".
        """
        before = self.potential.counts.lost
        with torch.no_grad():
            energies = self.potential(positions.double())
        n_lost = self.potential.counts.lost - before
        undefined = torch.isnan(energies) | ~torch.isfinite(log_q)
        keep = ~undefined
        if not bool(keep.any()):
            raise PotentialError("every sample has an undefined energy or density: the generator has diverged")
        if not bool(torch.isfinite(energies[keep]).any()):
            raise PotentialError("every sample has an infinite energy: the generator is untrained or has diverged")
        energies, log_q, positions = energies[keep], log_q[keep], positions[keep]
        array = lambda tensor: tensor.detach().cpu().numpy()
        return Ensemble(
            positions=array(positions),
            log_weights=np.asarray(array(-energies / self.kT - log_q.double())),
            kT=self.kT,
            energies=array(energies),
            log_q=array(log_q.double()),
            molecule=self.molecule,
            n_infinite=int(torch.isinf(energies).sum()),
            n_lost=n_lost,
            n_defects=int(undefined.sum()) - n_lost,
        )

    def energies(self, positions: np.ndarray) -> np.ndarray:
        """Energies (n,) in kJ/mol of positions (n, N, 3) in nm, in float64."""
        with torch.no_grad():
            energies = self.potential(torch.as_tensor(positions, dtype=torch.float64, device=self.device))
        return np.asarray(energies.cpu().numpy())

    def contains(self, positions: np.ndarray) -> np.ndarray:
        """Which configurations (n, N, 3) in nm lie in the domain, where the density is not zero: (n,) bool."""
        return np.asarray(self._log_q_of(positions) > -np.inf)

    def log_weights_of(self, positions: np.ndarray, energies: np.ndarray) -> np.ndarray:
        """log p~ - log q at given (for instance reference) samples (n, N, 3) in nm; +inf outside the domain."""
        return np.asarray(-energies / self.kT - self._log_q_of(positions))

    def _log_q_of(self, positions: np.ndarray) -> np.ndarray:
        like = next(self.flow.parameters())
        with torch.no_grad():
            parts = [self.log_prob(part.to(like)) for part in torch.as_tensor(positions).split(SAMPLE_BATCH)]
        return np.asarray(torch.cat(parts).double().cpu().numpy())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and description to one safetensors file (no pickle), atomically."""
        from boltzgen.model_file import save_generator

        save_generator(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> BoltzmannGenerator:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or of another kind.
        """
        from boltzgen.model_file import load_generator

        return load_generator(path, device)

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.flow.parameters())
        target = self.molecule or self.potential.name
        return f"<BoltzmannGenerator of {target}: {n_parameters:,} parameters on {self.device}>"
