"""A hash of what a System's energy is, whatever the order in which it lists its terms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import openmm
from openmm import unit

from boltzgen.energy.interactions import BornModel, CustomInteractions, CustomPairs
from boltzgen.energy.read import read_system
from boltzgen.energy.tables import TermTables, merge

__all__ = ["fingerprint"]

_KINDS = {"bonds": "bond", "pairs": "pair", "angles": "angle", "torsions": "torsion", "impropers": "improper"}


def fingerprint(system: openmm.System) -> str:
    """Hash of all terms, parameters and constraints, to nine digits.

    Unlike a hash of the serialized System it is the same from run to run (force-field files are read in the order of
    Python sets) and for every version of OpenMM. The order of the atoms counts.

    Raises
    ------
    PotentialError
        The System cannot be read.
    """
    merged = merge(read_system(system, ignore_constraints=True).values())
    lines = [
        f"atoms {system.getNumParticles()}",
        f"constant {merged.constant:.9g}",
        *_standard(merged),
        *_constraints(system),
    ]
    for custom in merged.custom:
        lines.extend(_few(custom))
    for pairs in merged.custom_pairs:
        lines.append(" ".join(["custom pairs", *_many(pairs)]))
    lines.extend(_born(model) for model in merged.born)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _constraints(system: openmm.System) -> Iterator[str]:
    for i, j, distance in map(system.getConstraintParameters, range(system.getNumConstraints())):
        yield f"constraint {min(i, j)} {max(i, j)} {distance.value_in_unit(unit.nanometer):.9g}"


def _standard(tables: TermTables) -> Iterator[str]:
    for kind, singular in _KINDS.items():
        atoms, parameters = getattr(tables, kind), getattr(tables, f"{singular}_parameters")
        for row, values in zip(atoms.tolist(), parameters, strict=True):
            yield f"{kind} {min(row, row[::-1])} {_digits(values)}"
    for row, index in zip(tables.cmaps.tolist(), tables.cmap_index, strict=True):
        yield f"cmaps {row} {_digits(tables.cmap_energies[index])}"


def _few(terms: CustomInteractions) -> Iterator[str]:
    geometry = [(g.variable, g.kind, g.particles) for g in terms.geometry]
    for k, row in enumerate(terms.atoms.tolist()):
        values = {name: np.broadcast_to(value, len(terms.atoms))[k] for name, value in terms.parameters.items()}
        yield f"custom {terms.expression.digest} {geometry} {row} {_named(values)}"


def _many(pairs: CustomPairs) -> Iterator[str]:
    excluded = np.argwhere(np.triu(~pairs.included, 1)).tolist()
    yield f"{pairs.expression.digest} {_named(pairs.particles)} {_named(pairs.constants)} excluded {excluded}"


def _born(model: BornModel) -> str:
    parts = [f"born {_named(model.particles)} {_named(model.constants)}"]
    for step in (*model.values, *model.energies):
        excluded = "single" if step.pairs is None else np.argwhere(np.triu(~step.pairs, 1)).tolist()
        parts.append(f"{step.name} {step.expression.digest} {excluded}")
    return " ".join(parts)


def _named(values: Mapping[str, np.ndarray | float]) -> str:
    return " ".join(f"{name} {_digits(np.asarray(values[name]))}" for name in sorted(values))


def _digits(values: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in np.ravel(values) + 0.0)
