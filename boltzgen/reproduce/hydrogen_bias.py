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
from boltzgen.reproduce.frames import Array, Share
from boltzgen.reproduce.heavy_atoms import HeavyAtoms, MoleculeData

__all__ = [
    "Estimate",
    "equation_32",
    "equation_32_weights",
    "estimate",
    "harmonic_weights",
    "internal_generator",
    "partition_function_weights",
    "pretrained_on_data",
    "with_partition_function",
]

AT_ONCE = 500  # frames
DRAWS = 32  # for each Z_H
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
    """Shares by the weights of `equation_32_weights`; parameters as of `estimate`."""
    return estimate(heavy, equation_32_weights(heavy), strength)


def with_partition_function(heavy: HeavyAtoms, internal: BoltzmannGenerator, strength: float = 0.0) -> Estimate:
    """Shares by the weights of `partition_function_weights`; parameters as there and of `estimate`."""
    return estimate(heavy, partition_function_weights(heavy, internal), strength)


def equation_32_weights(heavy: HeavyAtoms) -> Array:
    """Log of exp((U(x) - U(h(x_C)))/kT), the weights of the paper, for the frames of ``heavy.true``, (n,).

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 32.
    """
    placed = heavy.placed(heavy.heavy(heavy.true).double()).numpy()
    return np.asarray((heavy.true.energies - placed) / heavy.kT)


def partition_function_weights(
    heavy: HeavyAtoms, internal: BoltzmannGenerator, n_draws: int = DRAWS, seed: int = 0
) -> Array:
    """Log of exp(-U(h(x_C))/kT) / Z_H(x_C) for the frames of ``heavy.true``, (n,).

    Z_H is the mean of exp(-U/kT) / q over hydrogens drawn from q, one of which is that of the frame itself instead. As
    a frame's hydrogens have the density exp(-U/kT) / Z_H, the mean of 1 over this estimate is 1 / Z_H exactly, for any
    number of draws and any q that reaches all of them; draws alone would give too much.

    Parameters
    ----------
    internal : BoltzmannGenerator
        Its flow of hydrogens is q.
    n_draws : int
        With the frame's own.
    seed : int
    """
    density, rng = hydrogen_density(internal), torch.Generator().manual_seed(seed)
    like, log_z = next(internal.flow.parameters()), []
    frames, energies = torch.as_tensor(heavy.true.positions), torch.as_tensor(heavy.true.energies)
    for own, energy in zip(frames.split(AT_ONCE), energies.split(AT_ONCE), strict=True):
        atoms = own[:, heavy.atoms].to(like)
        with torch.no_grad():
            drawn, log_q = density.sample(atoms.repeat_interleave(n_draws - 1, 0), rng)
            log_ratio = -heavy.potential(drawn.double()) / heavy.kT - log_q.double()
            first = -energy / heavy.kT - density.log_prob(own.to(like)).double()
        log_ratio = torch.where(torch.isnan(log_ratio), -torch.inf, log_ratio).reshape(len(own), -1)
        log_z.append(torch.cat([first[:, None], log_ratio], 1).logsumexp(1) - math.log(n_draws))
    placed = heavy.placed(heavy.heavy(heavy.true).double())
    return (-placed / heavy.kT - torch.cat(log_z)).numpy()


def harmonic_weights(heavy: HeavyAtoms) -> Array:
    """Log of exp(-U(h(x_C))/kT) / Z_H(x_C) with the Z_H of harmonic hydrogens, up to a constant, (n,).

    With the gradient g and the second derivatives H of U by the hydrogens at h(x_C), by differences of forces, the
    integral of the quadratic function is ``exp(-U(h)/kT + g H^-1 g / 2kT) / sqrt(det H)`` times a constant. What is
    left out is how far hydrogens, above all turning methyls, are from harmonic.

    Returns
    -------
    (n,) array
        For the frames of ``heavy.true``; NaN where H is not positive: hydrogens far from a minimum, or turning freely.
    """
    hydrogens = np.setdiff1d(np.arange(heavy.true.positions.shape[1]), heavy.atoms)
    weights = []
    for atoms in heavy.heavy(heavy.true).double().split(AT_ONCE):
        placed = heavy.placed.all_atoms(atoms).double()
        columns = []
        for atom in hydrogens:
            for axis in range(3):
                step = torch.zeros_like(placed)
                step[:, atom, axis] = DIFFERENCE
                ahead, behind = (heavy.potential.energy_and_forces(placed + s)[1] for s in (step, -step))
                columns.append((behind - ahead)[:, hydrogens].flatten(1) / (2 * DIFFERENCE))
        slope = heavy.potential.energy_and_forces(placed)[1][:, hydrogens].flatten(1)
        matrix = torch.stack(columns, 1)
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        excess = ((vectors.mT @ slope[:, :, None])[..., 0].square() / values).sum(1) / 2
        harmonic = values.abs().log().sum(1) / 2 - excess / heavy.kT
        weights.append(torch.where((values > 0).all(1), harmonic, torch.nan))
    return torch.cat(weights).numpy()


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


def estimate(heavy: HeavyAtoms, log_weights: Array, strength: float = 0.0) -> Estimate:
    """Shares from the frames of ``heavy.true`` with further weights.

    Parameters
    ----------
    log_weights : (n,) array
        Added to those that the frames have.
    strength : float
        Of an alignment penalty in the target, nm^-2.
    """
    frames, penalty = heavy.true, heavy.penalty(strength)
    atoms = heavy.heavy(frames)
    if penalty is not None:
        log_weights = log_weights + penalty.log_rotation_integral(atoms).numpy()
    shares = {name: frames.share(mode(atoms).numpy(), log_weights) for name, mode in heavy.case.modes.items()}
    n = len(frames.energies)
    return Estimate(shares, n * effective_sample_fraction(frames.log_weights + log_weights), n)
