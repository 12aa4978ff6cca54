"""A molecule as the paper generates it: heavy atoms by a Cartesian flow, hydrogens put at their energy minimum.

The target is exp(-U(h(x_C))/kT) on the heavy atoms x_C, where h is a trained network; with an alignment penalty or
without. Data and populations of the Boltzmann distribution itself ("solid" in the paper's figures) and of this target
("dashed") come from sampling on U and on U(h(x_C)).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from boltzgen.coordinates.reference import minimized_positions
from boltzgen.energy import CompiledPotential
from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.placement import PlacedPotential
from boltzgen.reproduce.curves import kept_placement
from boltzgen.reproduce.frames import Array, Frames, Share, sampled_frames
from boltzgen.reproduce.molecule_settings import MoleculeSettings

__all__ = [
    "HeavyAtoms",
    "MoleculeCase",
    "MoleculeData",
    "prepare",
    "prepare_data",
    "spread",
]

DATA_SEED, PLACED_SEED, NETWORK_SEED, REFERENCE_SEED = 1, 2, 3, 4


@dataclass(frozen=True)
class MoleculeCase:
    """A molecule of the paper and its modes.

    Attributes
    ----------
    name : str
    structure, forcefield : str
        File in ``systems/``, and a force field by name or as such a file.
    modes : {name: callable}
        From positions (B, n_heavy, 3) of the heavy atoms to (B,) bool.
    """

    name: str
    structure: str
    forcefield: str
    modes: Mapping[str, Callable[[Tensor], Tensor]] = field(repr=False)

    def molecule(self, temperature: float) -> Molecule:
        """The molecule at a temperature in K.

        Raises
        ------
        StructureError
            If the folder ``systems`` is not to be found.
        """
        forcefield = str(_system_file(self.forcefield)) if self.forcefield.endswith(".xml") else self.forcefield
        return Molecule.from_pdb(
            _system_file(self.structure), forcefield=forcefield, solvent=None, temperature=temperature * unit.kelvin
        )


@dataclass(frozen=True, eq=False)
class MoleculeData:
    """A molecule with frames of its Boltzmann distribution.

    Attributes
    ----------
    case : MoleculeCase
    molecule : Molecule
    potential : CompiledPotential
        Of all atoms.
    atoms : (n_heavy,) array
        Indices of the heavy atoms.
    reference : (n_heavy, 3) array
        nm; the minimised structure, which the penalty aligns to.
    sources : str
        All that the frames depend on.
    true, data : Frames
        Of the Boltzmann distribution for its populations, and those to train on, whose modes may have other shares.
    """

    case: MoleculeCase
    molecule: Molecule
    potential: CompiledPotential
    atoms: Array
    reference: Array
    sources: str
    true: Frames
    data: Frames

    @property
    def kT(self) -> float:
        """kJ/mol."""
        return self.molecule.kT

    def heavy(self, frames: Frames) -> Tensor:
        """Heavy atoms (n, n_heavy, 3) of frames, nm."""
        return torch.as_tensor(frames.positions[:, self.atoms])

    def penalty(self, strength: float) -> AlignmentPenalty | None:
        """The alignment penalty on the heavy atoms; none at strength zero."""
        return AlignmentPenalty(self.reference, strength) if strength else None

    def ensemble(self, frames: Frames, whole: bool = False) -> Ensemble:
        """Frames as an Ensemble: of the heavy atoms, or of the whole molecule."""
        return Ensemble(
            positions=frames.positions if whole else frames.positions[:, self.atoms],
            log_weights=frames.log_weights,
            kT=self.kT,
            energies=frames.energies,
            molecule=self.molecule if whole else None,
            groups=frames.groups,
        )

    def shares(self, frames: Frames, strength: float = 0.0) -> dict[str, Share]:
        """Share of every mode; with a penalty, in its distribution, which weights frames by their integral over
        rotations (`AlignmentPenalty.log_rotation_integral`)."""
        heavy, penalty = self.heavy(frames), self.penalty(strength)
        log_weights = None if penalty is None else penalty.log_rotation_integral(heavy).numpy()
        return {name: frames.share(mode(heavy).numpy(), log_weights) for name, mode in self.case.modes.items()}


@dataclass(frozen=True, eq=False)
class HeavyAtoms(MoleculeData):
    """All that refinements of one molecule share, beside its data.

    Attributes
    ----------
    factor : (3 n_heavy, 3 n_heavy) array
        nm; of an untrained flow.
    placed, trained_on : PlacedPotential
        U(h(x_C)), and the same with every term of U capped.
    minimized : Frames
        Of exp(-U(h(x_C))/kT).
    placement : BoltzmannGenerator
        Holds the network h.
    """

    factor: Array
    placed: PlacedPotential
    trained_on: PlacedPotential
    minimized: Frames
    placement: BoltzmannGenerator


def prepare_data(
    case: MoleculeCase,
    settings: MoleculeSettings,
    checkpoint: Callable[[str], Path | None],
    say: Callable[[str], None],
) -> MoleculeData:
    """The molecule and its data; parameters and errors as of `prepare`."""
    molecule = case.molecule(settings.temperature)
    potential, atoms = CompiledPotential(molecule), np.asarray(molecule.heavy_atoms)
    reference = minimized_positions(molecule)[atoms]
    by = {"seed": REFERENCE_SEED, "temperature": settings.temperature, "network": ""}
    true = sampled_frames(molecule, potential, settings.reference, by, checkpoint("reference"))
    say(
        f"{case.name}: {len(true.energies):,} frames of the Boltzmann distribution, {true.evaluations:,} evaluations "
        f"in {true.seconds:.0f} s"
    )
    sources = f"{settings.sources}, {settings.temperature} K"
    known = MoleculeData(case, molecule, potential, atoms, reference - reference.mean(0), sources, true, true)
    start = spread(known, true, settings.data.n_walkers, settings.data_share)
    by |= {"seed": DATA_SEED, "start": sources}
    data = sampled_frames(molecule, potential, settings.data, by, checkpoint("data"), start)
    say(f"{case.name}: {len(data.energies):,} frames to train on, {data.evaluations:,} evaluations")
    return replace(known, data=data)


def prepare(
    case: MoleculeCase,
    settings: MoleculeSettings,
    checkpoint: Callable[[str], Path | None],
    say: Callable[[str], None],
) -> HeavyAtoms:
    """Data, network and references; from checkpoints where they were made before.

    Parameters
    ----------
    case : MoleculeCase
    settings : MoleculeSettings
    checkpoint : callable
        Path for a name; None for nowhere.
    say : callable
        Takes a line for every part.

    Raises
    ------
    CheckpointError
        If a checkpoint is of other settings.
    """
    known = prepare_data(case, settings, checkpoint, say)
    molecule, potential, true, data = known.molecule, known.potential, known.true, known.data
    config = GeneratorConfig(cartesian_rounds=1, cartesian_hidden=8, placement_hidden=settings.placement_hidden)
    placement = BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates="cartesian", hydrogens="network", config=config, seed=NETWORK_SEED
    )
    identity = {
        "data": known.sources,
        "steps": settings.placement_steps,
        "hidden": settings.placement_hidden,
    }

    path, steps = checkpoint("network"), settings.placement_steps
    accuracy = kept_placement(path, placement, data.positions, identity, n_steps=steps, seed=NETWORK_SEED)
    if accuracy is not None:
        say(f"{case.name}: {accuracy}")
    placed = PlacedPotential(placement)
    by = {"seed": PLACED_SEED, "temperature": settings.temperature, "network": str(identity)}
    start = spread(known, true, settings.placed.n_walkers, weighted=False)
    minimized = sampled_frames(molecule, placed, settings.placed, by, checkpoint("minimized"), start, true.grid)
    say(
        f"{case.name}: {len(minimized.energies):,} frames with hydrogens at their minimum, "
        f"{minimized.evaluations:,} evaluations in {minimized.seconds:.0f} s"
    )
    capped = copy.copy(placement)
    capped.potential = potential.capped(settings.max_gradient)
    return HeavyAtoms(
        **{one.name: getattr(known, one.name) for one in fields(known)},
        factor=placement.flow.frame.factor,  # type: ignore[attr-defined]
        placed=placed,
        trained_on=PlacedPotential(capped),
        minimized=minimized,
        placement=placement,
    )


def spread(
    known: MoleculeData,
    frames: Frames,
    n: int,
    chosen: tuple[str, float] | None = None,
    weighted: bool = True,
) -> Array:
    """Positions (n, N, 3) of frames, in which every mode has its share as far as so few can show it.

    Parameters
    ----------
    weighted : bool
        Whether by the weights of the frames; without them where the walkers will move under the bias that these undo.
    chosen : (str, float), optional
        A mode, and its share instead of its own.

    Raises
    ------
    StructureError
        If no frame is in the chosen mode, or all are.
    """
    inside = {name: mode(known.heavy(frames)).numpy() for name, mode in known.case.modes.items()}
    weights = np.exp(frames.log_weights - frames.log_weights.max()) if weighted else np.ones(len(frames.energies))
    if chosen is not None:
        name, share = chosen
        if inside[name].all() or not inside[name].any():
            raise StructureError(
                f"all frames of {known.case.name}, or none, are in the mode {name!r} that walkers are to start in and "
                "outside of: sample longer"
            )
        weights[inside[name]] *= share / weights[inside[name]].sum()
        weights[~inside[name]] *= (1 - share) / weights[~inside[name]].sum()
    order = np.lexsort(list(inside.values()))
    summed = weights[order].cumsum()
    rows = np.searchsorted(summed, (np.arange(n) + 0.5) / n * summed[-1])
    return frames.positions[order[rows]]


def _system_file(name: str) -> Path:
    folders = (Path("systems"), Path(__file__).resolve().parents[2] / "systems")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise StructureError(f"there is no systems/{name}: call this from the folder of the project, which has it")
