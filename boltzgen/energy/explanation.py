"""Why an energy is what it is: by force of the System, and by its worst contributions with the names of atoms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from boltzgen.energy.born import BornTerms
from boltzgen.energy.custom import CustomBonded, CustomPairTerms
from boltzgen.energy.pairs import PairTerms
from boltzgen.energy.program import TermProgram
from boltzgen.errors import PotentialError

__all__ = ["Contribution", "Explanation", "atom_name", "one_configuration", "worst_contributions"]

_KINDS = {"bonds": "stretch", "angles": "bend", "torsions": "torsion", "impropers": "improper", "cmaps": "map (CMAP)"}


@dataclass(frozen=True)
class Contribution:
    """One bonded interaction, one pair of atoms, or one atom's share of an implicit solvent.

    Attributes
    ----------
    kind : str
        "pair", "stretch", "bend", ...; a pair has Lennard-Jones and Coulomb together.
    atoms : tuple of int
        Indices.
    names : tuple of str
        Such as ALA2:CB.
    energy : float
        kJ/mol.
    distance : float or None
        nm, of two atoms.
    """

    kind: str
    atoms: tuple[int, ...]
    names: tuple[str, ...]
    energy: float
    distance: float | None

    def __str__(self) -> str:
        if self.distance is not None:
            return (
                f"{self.names[0]} and {self.names[1]} at {self.distance:.3g} nm ({self.kind}): {self.energy:.4g} kJ/mol"
            )
        return f"{self.kind} of {', '.join(self.names)}: {self.energy:.4g} kJ/mol"


@dataclass(frozen=True)
class Explanation:
    """Energy of one configuration in parts; `print` it.

    Attributes
    ----------
    energy : float
        kJ/mol; +inf for an overlap.
    terms : dict of float
        By force of the System, kJ/mol.
    worst : tuple of Contribution
        The largest contributions, largest first.
    """

    energy: float
    terms: dict[str, float]
    worst: tuple[Contribution, ...]

    def __str__(self) -> str:
        lines = [f"Energy: {self.energy:.6g} kJ/mol"]
        lines += [f"  {name:<28s} {value:14.6g}" for name, value in self.terms.items()]
        lines.append("Largest contributions:")
        return "\n".join([*lines, *(f"  {contribution}" for contribution in self.worst)])


def worst_contributions(
    program: TermProgram, x: Tensor, name_of: Callable[[int], str], n: int
) -> tuple[Contribution, ...]:
    """The n largest contributions to the energy of one configuration (3, N, 1)."""
    found: list[tuple[float, str, tuple[int, ...]]] = []
    for kind, atoms, energies in _contributions(program, x):
        # What cannot be evaluated, two atoms on one spot, is worse than anything.
        ranked = np.where(np.isnan(energies), np.inf, energies)
        for index in np.argsort(-ranked)[:n]:
            found.append((float(ranked[index]), kind, tuple(int(a) for a in atoms[index])))
    found.sort(key=lambda entry: -entry[0])
    return tuple(
        Contribution(kind, atoms, tuple(map(name_of, atoms)), energy, _distance(x, atoms))
        for energy, kind, atoms in found[:n]
    )


def one_configuration(positions: Any, n_atoms: int) -> Tensor:
    """A (1, N, 3) float64 tensor on the CPU, in nm.

    Raises
    ------
    PotentialError
        Another shape.
    """
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    if not isinstance(positions, Tensor):
        positions = torch.tensor(np.array(positions, dtype=np.float64))
    x = positions.detach().to("cpu", torch.float64)
    x = x[None] if x.ndim == 2 else x
    if tuple(x.shape) != (1, n_atoms, 3):
        raise PotentialError(f"one configuration ({n_atoms}, 3) in nm is explained at a time, not {tuple(x.shape)}")
    return x


def atom_name(topology: Any, atom: int) -> str:
    """Name of an atom, such as ALA2:CB, or its index where there is no topology."""
    if topology is None:
        return f"atom {atom}"
    found = next(a for a in topology.atoms() if a.index == atom)
    return f"{found.residue.name}{found.residue.id}:{found.name}"


def _contributions(program: TermProgram, x: Tensor) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, atoms (n, k) and energies (n,) of everything that adds to the energy."""
    bonded = program.bonded
    result = [(_KINDS[kind], bonded.atoms[kind], value[:, 0].numpy()) for kind, value in bonded.interactions(x).items()]
    for part in program.custom:
        assert isinstance(part, CustomBonded)
        result.append((f"custom term {part.text!r}", part.atoms, part.interactions(x)[:, 0].numpy()))
    for part in program.over_pairs:
        if isinstance(part, PairTerms | CustomPairTerms):
            atoms = torch.stack((part.first, part.second), dim=1).numpy()
            kind = "pair" if isinstance(part, PairTerms) else f"pair {part.text!r}"
            result.append((kind, atoms, part.interactions(x)[:, 0].numpy()))
        elif isinstance(part, BornTerms):
            result.append(("implicit solvent", np.arange(x.shape[1])[:, None], part.by_atom(x)[:, 0].numpy()))
    return result


def _distance(x: Tensor, atoms: tuple[int, ...]) -> float | None:
    return float((x[:, atoms[0]] - x[:, atoms[1]]).norm()) if len(atoms) == 2 else None
