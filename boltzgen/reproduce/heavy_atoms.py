"""A molecule as the paper generates it: heavy atoms by a Cartesian flow, hydrogens put at their energy minimum.

The target is exp(-U(h(x_C))/kT) on the heavy atoms x_C, where h is a trained network; with an alignment penalty or
without. Data and populations of the Boltzmann distribution itself ("solid" in the paper's figures) and of this target
("dashed") come from sampling on U and on U(h(x_C)).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from boltzgen.coordinates.reference import minimized_positions
from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.energy import CompiledPotential
from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError, StructureError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.placement import PlacedPotential
from boltzgen.progress import shown_steps
from boltzgen.reproduce.curves import kept_arrays, kept_placement, stoppable
from boltzgen.reproduce.molecule_settings import FlattenedSampling, MoleculeSettings, Sampling
from boltzgen.sampling import SamplingRun, TorsionBias, domain_of, flattened_sampling, learn_bias, parallel_tempering
from boltzgen.sampling.rounds import digest

__all__ = [
    "Array",
    "Frames",
    "HeavyAtoms",
    "MoleculeCase",
    "MoleculeData",
    "Share",
    "prepare",
    "prepare_data",
    "spread",
]

Array = np.ndarray
SPREADING_ROUNDS = 20  # between which it can be interrupted
NO_BIAS = np.zeros(0)
DATA_SEED, PLACED_SEED, NETWORK_SEED, REFERENCE_SEED = 1, 2, 3, 4
LEAST_ACCEPTED = 0.2  # of the trajectories; at fewer, frames are few and far between


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


@dataclass(frozen=True)
class Share:
    """Share of a mode in percent, and its standard error from independent ladders."""

    percent: float
    error: float

    def __str__(self) -> str:
        return f"{self.percent:.2f} ± {self.error:.2f} %"


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a sampler, within the domain of the structure.

    Attributes
    ----------
    positions : (n, N, 3) array
        nm, of all atoms.
    energies : (n,) array
        kJ/mol.
    log_weights : (n,) array
        Zeros from parallel tempering without a bias.
    groups : (n,) array
        Which of the independent ladders or walkers each frame is of.
    evaluations : int
    seconds : float
    outside : float
        Share of frames that were left out, with a cis amide for instance.
    grid : (n, n) array
        kJ/mol; the bias on phi and psi that the frames were sampled under. Empty if without.
    """

    positions: Array
    energies: Array
    log_weights: Array
    groups: Array
    evaluations: int
    seconds: float
    outside: float
    grid: Array = field(default_factory=lambda: NO_BIAS)

    @property
    def effective(self) -> float:
        """Kish's effective number of frames; correlation between them is not in it."""
        return len(self.energies) * effective_sample_fraction(self.log_weights)

    def rows(self, rows: Array) -> Frames:
        """Some of the frames."""
        names = ("positions", "energies", "log_weights", "groups")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def share(self, inside: Array, log_weights: Array | None = None) -> Share:
        """Weighted share of some frames, with the standard error of a ratio from the ladders.

        Parameters
        ----------
        inside : (n,) bool array
        log_weights : (n,) array, optional
            Added to those of the frames.
        """
        share, deviations = self.deviations(inside, log_weights)
        return Share(100 * share, 100 * self.error(deviations))

    def change(self, inside: Array, log_weights: Array) -> Share:
        """By how much further weights change a share, with the standard error of the difference; as `share`."""
        (before, without), (after, weighted) = (self.deviations(inside, more) for more in (None, log_weights))
        return Share(100 * (after - before), 100 * self.error(weighted - without))

    def deviations(self, inside: Array, log_weights: Array | None = None) -> tuple[float, Array]:
        """The weighted share, and what every frame adds to its deviation: ``w (inside - share) / sum(w)``, (n,)."""
        total = self.log_weights if log_weights is None else self.log_weights + log_weights
        weights = np.exp(total - total.max())
        weights /= weights.sum()
        share = float(weights @ inside)
        return share, weights * (inside - share)

    def error(self, deviations: Array) -> float:
        """Standard error of something that every frame adds ``deviations`` (n,) to, from independent ladders."""
        _, ladder = np.unique(self.groups, return_inverse=True)
        sums = np.bincount(ladder, deviations)
        return float(np.sqrt(len(sums) / max(len(sums) - 1, 1) * np.square(sums).sum()))


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
    true = _frames(molecule, potential, settings.reference, by, checkpoint("reference"))
    say(
        f"{case.name}: {len(true.energies):,} frames of the Boltzmann distribution, {true.evaluations:,} evaluations "
        f"in {true.seconds:.0f} s"
    )
    sources = f"{settings.sources}, {settings.temperature} K"
    known = MoleculeData(case, molecule, potential, atoms, reference - reference.mean(0), sources, true, true)
    start = spread(known, true, settings.data.n_walkers, settings.data_share)
    by |= {"seed": DATA_SEED, "start": sources}
    data = _frames(molecule, potential, settings.data, by, checkpoint("data"), start)
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
    minimized = _frames(molecule, placed, settings.placed, by, checkpoint("minimized"), start, true.grid)
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


def _run(
    molecule: Molecule,
    potential: Any,
    sampling: Sampling | FlattenedSampling,
    seed: int,
    start: Array | None,
    grid: Array,
    part: Callable[[str], Path | None],
) -> SamplingRun:
    """Frames by parallel tempering, from a start and with a bias on phi and psi if they are given; or by flattening.

    ``part`` gives a file for each part of the work, from which it goes on after an interruption.

    Raises
    ------
    PotentialError
        If next to no trajectory of hybrid Monte Carlo was accepted.
    RunInterrupted
        After Ctrl-C or SIGTERM.
    """

    def sampled(label: str, sample: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with stoppable(part(label)) as interrupts:
            shown = lambda steps: shown_steps(steps, label, interrupts.requested)
            return sample(molecule, *args, **options, progress=shown, checkpoint=part(label))

    torsions, options = molecule.torsions, asdict(sampling)
    if isinstance(sampling, Sampling):
        options["bias"] = TorsionBias((torsions["phi"], torsions["psi"]), grid) if grid.size else None
        options |= {"seed": seed, "start": start}
        run: SamplingRun = sampled("parallel tempering", parallel_tempering, potential, **options)
        if (run.move_acceptance < LEAST_ACCEPTED).any():
            least = f"{100 * run.move_acceptance.min():.0f} %"
            raise PotentialError(f"{least} of the trajectories of {sampling} were accepted: shorter steps are needed")
        return run
    n_learning, n_spreading = options.pop("n_learning"), options.pop("n_spreading")
    learning = {"n_steps": n_learning, "n_walkers": sampling.n_walkers, "seed": seed}
    bias = sampled("learning the bias", learn_bias, potential, **learning)
    spreading = options | {"n_steps": n_spreading, "save_interval": max(n_spreading // SPREADING_ROUNDS, 1)}
    first = sampled("spreading", flattened_sampling, potential, bias, seed=seed + 2, **spreading)
    start = first.ensemble.positions[-sampling.n_walkers :]
    run = sampled("flattened sampling", flattened_sampling, potential, bias, seed=seed + 1, start=start, **options)
    evaluations, seconds = (
        sum(getattr(one, cost) for one in (bias, first, run)) for cost in ("evaluations", "seconds")
    )
    return replace(run, evaluations=evaluations, seconds=seconds, settings={**run.settings, "grid": bias.grid})


def _frames(
    molecule: Molecule,
    potential: Any,
    sampling: Sampling | FlattenedSampling,
    identity: Mapping[str, Any],
    path: Path | None,
    start: Array | None = None,
    grid: Array = NO_BIAS,
) -> Frames:
    """Frames by sampling a potential of the molecule."""
    known = {**identity, **asdict(sampling)}

    def part(label: str) -> Path | None:
        if path is None:
            return None
        return path.with_name(f"{path.stem}-{digest(str(known))}-{label.replace(' ', '-')}{path.suffix}")

    def make() -> dict[str, Array]:
        run = _run(molecule, potential, sampling, int(identity["seed"]), start, grid, part)
        ensemble = run.ensemble
        inside = np.asarray(domain_of(molecule)(ensemble.positions))
        return {
            "positions": ensemble.positions[inside],
            "energies": np.asarray(ensemble.energies)[inside],
            "log_weights": np.asarray(ensemble.log_weights, dtype=np.float64)[inside],
            "groups": np.asarray(ensemble.groups)[inside],
            "grid": np.asarray(run.settings.get("grid", grid)),
            "cost": np.array([run.evaluations, run.seconds, ensemble.weights @ ~inside]),
        }

    made = kept_arrays(path, known, make)
    if path is not None:
        for left in path.parent.glob(f"{path.stem}-{digest(str(known))}-*"):
            left.unlink()
    evaluations, seconds, outside = made.pop("cost").tolist()
    return Frames(**made, evaluations=int(evaluations), seconds=seconds, outside=outside)


def _system_file(name: str) -> Path:
    folders = (Path("systems"), Path(__file__).resolve().parents[2] / "systems")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise StructureError(f"there is no systems/{name}: call this from the folder of the project, which has it")
