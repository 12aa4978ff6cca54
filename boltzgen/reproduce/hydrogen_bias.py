"""What hydrogens at their energy minimum do to the populations: estimates from samples, by appendix E and by Z_H.

Samples x = (x_C, x_H) of the Boltzmann distribution become samples of exp(-U(h(x_C))/kT) on the heavy atoms with the
weights ``exp(-U(h(x_C))/kT) Z_B / int exp(-U(x)/kT) dx_H``. Equation 32 of the paper puts exp(-U(x)/kT) in the place of
the integral. For harmonic hydrogens the mean of exp((U(x) - U(h(x_C)))/kT) over the Boltzmann distribution is the
volume of the hydrogens' space, which is infinite: the estimate is that of its few largest weights, and does not
converge. Here the integral is taken from draws of a trained flow of the hydrogens, or as that of a quadratic function.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.placement import hydrogen_density
from boltzgen.reproduce.curves import kept_pretraining
from boltzgen.reproduce.heavy_atoms import Array, HeavyAtoms, MoleculeData, Share

__all__ = [
    "Estimate",
    "equation_32",
    "equation_32_weights",
    "estimate",
    "harmonic_weights",
    "internal_generator",
    "partition_function_weights",
    "pretrained_on_data",
    "thinned",
    "with_partition_function",
]

N_FRAMES = 4000
AT_ONCE = 500  # frames
DRAWS = 64  # for each Z_H
DRAW_SEED = 19
DIFFERENCE = 1e-4  # nm


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
    """Shares by the weights of `equation_32_weights`.

    Parameters
    ----------
    strength : float
        Of an alignment penalty in the target, nm^-2.
    """
    rows = thinned(heavy, N_FRAMES)
    return estimate(heavy, rows, equation_32_weights(heavy, rows), strength)


def with_partition_function(heavy: HeavyAtoms, internal: BoltzmannGenerator, strength: float = 0.0) -> Estimate:
    """Shares by the weights of `partition_function_weights`; parameters as there and of `equation_32`."""
    rows = thinned(heavy, N_FRAMES)
    return estimate(heavy, rows, partition_function_weights(heavy, rows, internal), strength)


def equation_32_weights(heavy: HeavyAtoms, rows: Array) -> Array:
    """Log of exp((U(x) - U(h(x_C)))/kT), the weights of the paper, (n,).

    Parameters
    ----------
    rows : (n,) int array
        Of ``heavy.true``.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 32.
    """
    frames = heavy.true.rows(rows)
    placed = heavy.placed(heavy.heavy(frames).double()).numpy()
    return np.asarray((frames.energies - placed) / heavy.kT)


def partition_function_weights(heavy: HeavyAtoms, rows: Array, internal: BoltzmannGenerator) -> Array:
    """Log of exp(-U(h(x_C))/kT) / Z_H(x_C), (n,), with Z_H from draws of the hydrogens: the mean of exp(-U/kT) / q.

    Parameters
    ----------
    rows : (n,) int array
        Of ``heavy.true``.
    internal : BoltzmannGenerator
        Its flow of hydrogens is q.
    """
    atoms = heavy.heavy(heavy.true.rows(rows))
    density, rng = hydrogen_density(internal), torch.Generator().manual_seed(DRAW_SEED)
    log_z = []
    for part in atoms.to(next(internal.flow.parameters())).split(AT_ONCE):
        with torch.no_grad():
            drawn, log_q = density.sample(part.repeat_interleave(DRAWS, 0), rng)
            log_ratio = -heavy.potential(drawn.double()) / heavy.kT - log_q.double()
        log_z.append(log_ratio.nan_to_num(nan=-torch.inf).reshape(-1, DRAWS).logsumexp(1))
    return (-heavy.placed(atoms.double()) / heavy.kT - torch.cat(log_z) + math.log(DRAWS)).numpy()


def harmonic_weights(heavy: HeavyAtoms, rows: Array) -> Array:
    """Log of exp(-U(h(x_C))/kT) / Z_H(x_C) with the Z_H of harmonic hydrogens, up to a constant: log det(H) / 2, (n,).

    H is the matrix of second derivatives of U by the hydrogens at their minimum, by differences of forces. What is left
    out is how far hydrogens, above all turning methyls, are from harmonic.

    Parameters
    ----------
    rows : (n,) int array
        Of ``heavy.true``.

    Returns
    -------
    (n,) array
        NaN where a second derivative is not positive: the hydrogens are not near enough to a minimum, or turn freely.
    """
    hydrogens = np.setdiff1d(np.arange(heavy.true.positions.shape[1]), heavy.atoms)
    halves = []
    for part in np.array_split(rows, max(1, len(rows) // AT_ONCE)):
        placed = heavy.placed.all_atoms(heavy.heavy(heavy.true.rows(part)).double()).double()
        columns = []
        for atom in hydrogens:
            for axis in range(3):
                step = torch.zeros_like(placed)
                step[:, atom, axis] = DIFFERENCE
                ahead, behind = (heavy.potential.energy_and_forces(placed + s)[1] for s in (step, -step))
                columns.append((behind - ahead)[:, hydrogens].flatten(1) / (2 * DIFFERENCE))
        matrix = torch.stack(columns, 1)
        curvatures = torch.linalg.eigvalsh(matrix + matrix.mT)
        halves.append(torch.where((curvatures > 0).all(1), curvatures.abs().log().sum(1) / 2, torch.nan))
    return torch.cat(halves).numpy()


def thinned(heavy: HeavyAtoms, n: int, number: int = 0) -> Array:
    """Rows of ``heavy.true``, n of them evenly spread; other ones for another number, as far as there are enough."""
    total = len(heavy.true.energies)
    n = min(n, total)
    return np.unique(((np.arange(n) * total) // n + number) % total)


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


def estimate(heavy: HeavyAtoms, rows: Array, log_weights: Array, strength: float = 0.0) -> Estimate:
    """Shares from frames with weights.

    Parameters
    ----------
    rows : (n,) int array
        Of ``heavy.true``.
    log_weights : (n,) array
        Added to those that the frames have.
    strength : float
        Of an alignment penalty in the target, nm^-2.
    """
    frames, penalty = heavy.true.rows(rows), heavy.penalty(strength)
    atoms = heavy.heavy(frames)
    if penalty is not None:
        log_weights = log_weights + penalty.log_rotation_integral(atoms).numpy()
    shares = {name: frames.share(mode(atoms).numpy(), log_weights) for name, mode in heavy.case.modes.items()}
    n = len(frames.energies)
    return Estimate(shares, n * effective_sample_fraction(frames.log_weights + log_weights), n)
