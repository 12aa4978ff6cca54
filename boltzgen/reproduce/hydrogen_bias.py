"""What hydrogens at their energy minimum do to the populations: three estimates from samples, by appendix E and by h.

Samples x = (x_C, x_H) of the Boltzmann distribution become samples of exp(-U(h(x_C))/kT) on the heavy atoms with the
weights ``exp(-U(h(x_C))/kT) Z_B / int exp(-U(x)/kT) dx_H``. Equation 32 of the paper puts exp(-U(x)/kT) in the place of
the integral. For harmonic hydrogens the mean of exp((U(x) - U(h(x_C)))/kT) over the Boltzmann distribution is the
volume of the hydrogens' space, which is infinite: the estimate is that of its few largest weights, and does not
converge. `boltzgen.placement.with_placed_hydrogens` divides by a density of the hydrogens instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.placement import hydrogen_density, with_placed_hydrogens
from boltzgen.reproduce.curves import kept_pretraining
from boltzgen.reproduce.heavy_atoms import Array, HeavyAtoms, MoleculeData, Share

__all__ = ["Estimate", "equation_32", "internal_generator", "pretrained_on_data", "with_partition_function"]

N_FRAMES = 4000


@dataclass(frozen=True)
class Estimate:
    """Shares of the modes from weighted samples.

    Attributes
    ----------
    shares : {mode: Share}
    effective : float
        Kish's effective number of samples.
    n : int
        Samples.
    """

    shares: dict[str, Share]
    effective: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def equation_32(heavy: HeavyAtoms, strength: float = 0.0) -> Estimate:
    """Shares by the weights exp((U(x) - U(h(x_C)))/kT) of the paper.

    Parameters
    ----------
    strength : float
        Of an alignment penalty in the target, nm^-2.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 32.
    """
    rows = _rows(heavy)
    frames = heavy.true.rows(rows)
    placed = heavy.placed(heavy.heavy(frames).double()).numpy()
    return _estimate(heavy, rows, (frames.energies - placed) / heavy.kT, strength)


def with_partition_function(heavy: HeavyAtoms, internal: BoltzmannGenerator, strength: float = 0.0) -> Estimate:
    """Shares by the weights exp((U(x) - U(h(x_C)))/kT) q(x_H | x_C), whose expectations are finite.

    Parameters
    ----------
    internal : BoltzmannGenerator
        Its flow of hydrogens is q.
    strength : float
        Of an alignment penalty in the target, nm^-2.
    """
    rows = _rows(heavy)
    ensemble = heavy.ensemble(heavy.true.rows(rows), whole=True)
    after = with_placed_hydrogens(heavy.placement, ensemble, hydrogen_density(internal))
    return _estimate(heavy, rows, after.log_weights - ensemble.log_weights, strength)


def internal_generator(
    heavy: HeavyAtoms,
    n_steps: int,
    batch_size: int,
    seed: int,
    path: Path | None,
    config: GeneratorConfig | None = None,
) -> BoltzmannGenerator:
    """An internal-coordinate generator with a flow of hydrogens, pre-trained with KL_z on the data.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of other settings.
    """
    generator = BoltzmannGenerator.for_molecule(heavy.molecule, heavy.potential, config=config, seed=seed)
    return pretrained_on_data(heavy, generator, n_steps, batch_size, seed, path)


def pretrained_on_data(
    heavy: MoleculeData, generator: BoltzmannGenerator, n_steps: int, batch_size: int, seed: int, path: Path | None
) -> BoltzmannGenerator:
    """A generator of all atoms, pre-trained with KL_z on the data or read from where it was kept.

    Raises
    ------
    CheckpointError, RunInterrupted
        See `boltzgen.reproduce.curves.kept_pretraining`.
    """
    identity = {"seed": seed, "n_steps": n_steps, "batch_size": batch_size, "data": heavy.sources}
    strength = None if generator.alignment is None else generator.alignment.strength
    identity |= {"flow": str(generator.flow), "alignment": strength}
    data = heavy.ensemble(heavy.data, whole=True)
    options = {"n_steps": n_steps, "batch_size": batch_size, "patience": None, "seed": seed}
    kept_pretraining(path, generator, data, identity, **options)
    return generator


def _rows(heavy: HeavyAtoms) -> Array:
    n = len(heavy.true.energies)
    return np.unique(np.linspace(0, n - 1, min(N_FRAMES, n)).astype(int))


def _estimate(heavy: HeavyAtoms, rows: Array, log_weights: Array, strength: float) -> Estimate:
    frames, penalty = heavy.true.rows(rows), heavy.penalty(strength)
    atoms = heavy.heavy(frames)
    if penalty is not None:
        log_weights = log_weights + penalty.log_rotation_integral(atoms).numpy()
    shares = {name: frames.share(mode(atoms).numpy(), log_weights) for name, mode in heavy.case.modes.items()}
    n = len(frames.energies)
    return Estimate(shares, n * effective_sample_fraction(frames.log_weights + log_weights), n)
