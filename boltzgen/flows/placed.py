"""Heavy atoms first, hydrogens given them: any heavy-atom flow with any kind of hydrogens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.hydrogens import heavy_chart
from boltzgen.coordinates.region import Region
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.flows.hydrogen_placement import HydrogenFlow, HydrogenMinimizer, HydrogenNetwork
from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow

__all__ = ["CartesianFrame", "PlacedFlow"]


@dataclass(frozen=True, eq=False)
class CartesianFrame:
    """Where a Cartesian flow of heavy atoms starts, and what it is aligned to.

    Attributes
    ----------
    reference : (n_heavy, 3) array
        nm; the minimised structure, its centroid at the origin.
    factor : (3 n_heavy, 3 n_heavy) lower triangular array
        nm; Cholesky factor of the covariance that an untrained flow has.
    """

    reference: np.ndarray
    factor: np.ndarray

    def flow(self, config: GeneratorConfig) -> CartesianFlow:
        """An untrained flow of the sizes in a configuration."""
        return CartesianFlow(
            (len(self.reference), 3),
            centre=torch.as_tensor(self.reference),
            factor=torch.as_tensor(self.factor),
            n_rounds=config.cartesian_rounds,
            n_hidden=config.cartesian_hidden,
        )


class PlacedFlow(nn.Module):
    """Density of all atoms, ``q(heavy) q(hydrogens | heavy)``, or of heavy atoms alone where hydrogens are fixed.

    With `HydrogenFlow` the log-density is that of all atoms. With `HydrogenNetwork` and `HydrogenMinimizer` it is that
    of the heavy atoms, and the target is exp(-U(h(x_C))/kT) on the heavy atoms alone: not the Boltzmann distribution
    of the molecule (Felardos et al. 2022, appendix E).

    A Cartesian flow of heavy atoms can leave the domain of the internal coordinates (the other chirality, cis amides);
    the target is zero there, see `Region` and `BoltzmannGenerator.reduced_energy`.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    config : GeneratorConfig
    heavy : CartesianFlow or MolecularFlow
        Of the heavy atoms: on all their coordinates, or modulo rigid motion.
    hydrogens : HydrogenFlow, HydrogenNetwork or HydrogenMinimizer
    frame : CartesianFrame, optional
        Of a Cartesian flow: what it was made from, to be saved with it.

    Attributes
    ----------
    region : Region or None
        The domain, where samples may lie outside; of heavy atoms alone where hydrogens are fixed.
    """

    heavy_atoms: Tensor

    def __init__(
        self,
        chart: CoordinateChart,
        config: GeneratorConfig,
        heavy: CartesianFlow | MolecularFlow,
        hydrogens: HydrogenFlow | HydrogenNetwork | HydrogenMinimizer,
        frame: CartesianFrame | None = None,
    ) -> None:
        super().__init__()
        self.chart, self.config = chart, config
        self.heavy, self.hydrogens, self.frame = heavy, hydrogens, frame
        self.region = Region(self._seen_chart()) if isinstance(heavy, CartesianFlow) else None
        self.register_buffer("heavy_atoms", hydrogens.variables.coordinates.heavy.clone(), persistent=False)

    @property
    def n_atoms(self) -> int:
        return self.chart.internal.n_atoms

    @property
    def is_cartesian(self) -> bool:
        return isinstance(self.heavy, CartesianFlow)

    @property
    def kinds(self) -> dict[str, str]:
        """``coordinates`` and ``hydrogens`` as users name them."""
        return {"coordinates": "cartesian" if self.is_cartesian else "internal", "hydrogens": self.hydrogens.kind}

    @property
    def is_exact(self) -> bool:
        """Whether the target is the distribution of all atoms."""
        return self.hydrogens.is_exact

    def sample_and_log_prob(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) in nm, differentiable in the parameters, and the log-density (B,)."""
        heavy, log_q = self.heavy.sample_and_log_prob(n_samples, generator)
        positions, log_q_hydrogens = self.hydrogens.sample(heavy, generator)
        return positions, log_q + log_q_hydrogens

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,) of positions (B, N, 3) in nm; of their heavy atoms alone where hydrogens are fixed."""
        return self.heavy.log_prob(positions[:, self.heavy_atoms]) + self.hydrogens.log_prob(positions)

    def outside(self, positions: Tensor) -> Tensor | None:
        """Which configurations (B, N, 3) lie outside the domain: (B,) bool; None where the flow cannot leave it."""
        if self.region is None:
            return None
        return ~self.region.contains(positions if self.is_exact else positions[:, self.heavy_atoms])

    def start_at(self, positions: Tensor, weights: Tensor) -> None:
        """Let an untrained Cartesian flow start at data (n, N, 3) with weights (n,)."""
        if isinstance(self.heavy, CartesianFlow):
            self.heavy.start_at(positions[:, self.heavy_atoms], weights)

    def projected(self, positions: Tensor) -> Tensor:
        """Positions (B, N, 3) with the hydrogens where this flow puts them; as they are where hydrogens are drawn."""
        if self.is_exact:
            return positions
        return self.hydrogens.sample(positions[:, self.heavy_atoms], None)[0]

    def domain(self) -> str:
        """The region that can be reached, and the target on it, in words."""
        region = self._seen_chart().domain()
        if self.region is not None:
            region += (
                " Heavy atoms are drawn by all their Cartesian coordinates, which can leave this region: such samples "
                "have weight zero."
            )
        return f"{region} Target: {self.hydrogens.target}."

    def _seen_chart(self) -> CoordinateChart:
        """Of the atoms that target and density depend on."""
        return self.chart if self.is_exact else heavy_chart(self.chart)

    def extra_repr(self) -> str:
        return f"target: {self.hydrogens.target}"
