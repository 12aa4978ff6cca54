"""OpenMM forces to parameter tables; what cannot be read is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
from openmm import unit

from boltzgen.energy.expressions import parse_expression
from boltzgen.energy.interactions import CustomInteractions, Geometry
from boltzgen.energy.read_custom import CUSTOM_READERS, exclusion_matrix
from boltzgen.energy.tables import MAX_PERIODICITY, Floats, TermTables, cosine_polynomial
from boltzgen.energy.well_known import (
    COULOMB,
    HARMONIC_IMPROPERS,
    LENNARD_JONES_BONDS,
    LENNARD_JONES_TABLES,
    without_spaces,
)
from boltzgen.errors import PotentialError

__all__ = ["force_names", "keeps_constraints", "read_system", "system_of"]

_KJ, _NM, _RAD, _E = unit.kilojoule_per_mole, unit.nanometer, unit.radian, unit.elementary_charge

_IGNORED = {"CMMotionRemover"}


def system_of(molecule: Any) -> openmm.System:
    """The System of a molecule, or the System itself.

    Raises
    ------
    PotentialError
        It is neither.
    """
    system = getattr(molecule, "system", molecule)
    if not isinstance(system, openmm.System):
        raise PotentialError(
            f"a potential is made of a Molecule or an openmm.System, not of a {type(molecule).__name__}"
        )
    return system


def keeps_constraints(molecule: Any) -> bool:
    """Whether the generators and samplers of this object keep its constraints: those of a Molecule do."""
    return getattr(molecule, "constraints", None) is not None


def force_names(system: openmm.System) -> list[str]:
    """Distinct names of the forces of a System, in order; those without energy are left out by `read_system`."""
    names: list[str] = []
    for force in system.getForces():
        name = type(force).__name__
        count = sum(n == name or n.startswith(f"{name} (") for n in names)
        names.append(name if count == 0 else f"{name} ({count + 1})")
    return names


def read_system(system: openmm.System, ignore_constraints: bool = False, partly: bool = False) -> dict[str, TermTables]:
    """Tables of every force of a System.

    Parameters
    ----------
    system : openmm.System
        Not periodic, without virtual sites.
    ignore_constraints : bool
        Take the energy of positions that satisfy the constraints, for callers that see to that. Otherwise constraints
        are refused, but where the constrained pair keeps its stretch term (`flexibleConstraints=True`).
    partly : bool
        Leave out what cannot be compiled, instead of refusing it.

    Returns
    -------
    dict of TermTables
        By force name, in the order of the System; motion removers are left out.

    Raises
    ------
    PotentialError
        Names the first thing that cannot be compiled.
    """
    if not partly:
        _check_particles(system, ignore_constraints)
    tables: dict[str, TermTables] = {}
    for name, force in zip(force_names(system), system.getForces(), strict=True):
        if type(force).__name__ in _IGNORED:
            continue
        try:
            tables[name] = _read_force(force, name)
        except PotentialError:
            if not partly:
                raise
    return tables


def _check_particles(system: openmm.System, ignore_constraints: bool) -> None:
    rigid = _constrained_without_stretch(system)
    if rigid and not ignore_constraints:
        raise PotentialError(
            f"the System has {system.getNumConstraints()} constraints, {len(rigid)} of them in the place of a stretch "
            f"term (atoms {rigid[0][0]} and {rigid[0][1]} first), which an energy over free positions does not know; "
            "build it with constraints=None and rigidWater=False"
        )
    if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
        raise PotentialError("the System has virtual sites, which cannot be compiled; use OpenMMPotential")


def _read_force(force: openmm.Force, name: str) -> TermTables:
    kind = type(force).__name__
    if kind not in _READERS:
        raise PotentialError(f"{name} cannot be compiled; use OpenMMPotential for this System")
    if force.usesPeriodicBoundaryConditions():
        raise PotentialError(f"{name} uses periodic boundary conditions; only isolated molecules can be compiled")
    well_known = _WELL_KNOWN[kind](force, name) if kind in _WELL_KNOWN else None
    return _READERS[kind](force, name) if well_known is None else well_known


def _constrained_without_stretch(system: openmm.System) -> list[tuple[int, int]]:
    pairs = [tuple(sorted(system.getConstraintParameters(i)[:2])) for i in range(system.getNumConstraints())]
    stretches = {
        tuple(sorted(force.getBondParameters(i)[:2]))
        for force in system.getForces()
        if isinstance(force, openmm.HarmonicBondForce)
        for i in range(force.getNumBonds())
    }
    return [(i, j) for i, j in pairs if (i, j) not in stretches]


def _value(quantity: object, of: unit.Unit) -> float:
    return float(quantity.value_in_unit(of) if unit.is_quantity(quantity) else quantity)  # type: ignore[attr-defined, arg-type]


def _bonds(force: openmm.HarmonicBondForce, name: str) -> TermTables:
    rows = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    return TermTables(
        bonds=_index([(i, j) for i, j, _, _ in rows], 2),
        bond_parameters=_table([(_value(k, _KJ / _NM**2), _value(r, _NM)) for _, _, r, k in rows], 2),
    )


def _angles(force: openmm.HarmonicAngleForce, name: str) -> TermTables:
    rows = [force.getAngleParameters(i) for i in range(force.getNumAngles())]
    return TermTables(
        angles=_index([row[:3] for row in rows], 3),
        angle_parameters=_table([(_value(k, _KJ / _RAD**2), _value(t, _RAD)) for *_, t, k in rows], 2),
    )


def _torsions(force: openmm.PeriodicTorsionForce, name: str) -> TermTables:
    atoms, rows = [], []
    fast: list[tuple] = []
    for index in range(force.getNumTorsions()):
        *quadruple, n, phase, k = force.getTorsionParameters(index)
        if n < 1:
            raise PotentialError(f"{name}: torsion {index} has periodicity {n}; it must be at least 1")
        if n > MAX_PERIODICITY:
            fast.append((quadruple, n, _value(phase, _RAD), _value(k, _KJ)))
            continue
        atoms.append(quadruple)
        rows.append(cosine_polynomial(n, _value(phase, _RAD), _value(k, _KJ)))
    return TermTables(
        torsions=_index(atoms, 4),
        torsion_parameters=_table(rows, 2 * (MAX_PERIODICITY + 1)),
        custom=[_fast_torsions(fast)] if fast else [],
    )


def _fast_torsions(rows: list[tuple]) -> CustomInteractions:
    """Periodicities at which a polynomial in the cosine would lose digits."""
    return CustomInteractions(
        parse_expression("k*(1+cos(n*theta-phase))"),
        (Geometry("theta", "dihedral", (0, 1, 2, 3)),),
        _index([row[0] for row in rows], 4),
        {name: np.array([row[k] for row in rows], dtype=np.float64) for k, name in enumerate(("n", "phase", "k"), 1)},
    )


def _ryckaert_bellemans(force: openmm.RBTorsionForce, name: str) -> TermTables:
    """Sum of c_n cos^n(phi - 180 degrees): a polynomial in cos(phi) with the odd signs turned."""
    rows = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    parameters = np.zeros((len(rows), 2 * (MAX_PERIODICITY + 1)))
    for row, (*_, c0, c1, c2, c3, c4, c5) in zip(parameters, rows, strict=True):
        row[:6] = [_value(c, _KJ) * (-1) ** n for n, c in enumerate((c0, c1, c2, c3, c4, c5))]
    return TermTables(torsions=_index([row[:4] for row in rows], 4), torsion_parameters=parameters)


def _cmaps(force: openmm.CMAPTorsionForce, name: str) -> TermTables:
    rows = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    used = sorted({row[0] for row in rows})  # CHARMM files define 24 maps, of which a peptide uses one or two
    energies: list[np.ndarray] = []
    for index in used:
        size, energy = force.getMapParameters(index)
        energies.append(np.array(energy.value_in_unit(_KJ), dtype=np.float64).reshape(size, size).T)
    return TermTables(
        cmaps=_index([row[1:] for row in rows], 8),
        cmap_index=np.array([used.index(row[0]) for row in rows], dtype=np.int64),
        cmap_energies=energies,
    )


def _nonbonded(force: openmm.NonbondedForce, name: str) -> TermTables:
    if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
        raise PotentialError(f"{name} uses a cut-off or Ewald sum; build the System with nonbondedMethod=NoCutoff")
    n = force.getNumParticles()
    rows = [force.getParticleParameters(i) for i in range(n)]
    particles = _table([(_value(q, _E), _value(s, _NM), _value(e, _KJ)) for q, s, e in rows], 3)
    exceptions = [force.getExceptionParameters(i) for i in range(force.getNumExceptions())]
    special = _table([(_value(q, _E**2), _value(s, _NM), _value(e, _KJ)) for _, _, q, s, e in exceptions], 3)
    _add_offsets(force, particles, special)
    charge, sigma, epsilon = particles.T
    special_pairs = [(i, j) for i, j, *_ in exceptions]
    i, j = np.nonzero(np.triu(exclusion_matrix(n, special_pairs)))
    c12, c6 = _lennard_jones((sigma[i] + sigma[j]) / 2, np.sqrt(epsilon[i] * epsilon[j]))
    pairs = np.stack((c12, c6, COULOMB * charge[i] * charge[j]), axis=1)
    c12, c6 = _lennard_jones(special[:, 1], special[:, 2])
    return TermTables(
        pairs=np.concatenate((np.stack((i, j), axis=1), _index(special_pairs, 2))),
        pair_parameters=np.concatenate((pairs, np.stack((c12, c6, COULOMB * special[:, 0]), axis=1))),
    )


def _add_offsets(force: openmm.NonbondedForce, particles: Floats, exceptions: Floats) -> None:
    """Add what global parameters, at their defaults, add to charges, sigmas and epsilons."""
    indices = range(force.getNumGlobalParameters())
    value = {force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i) for i in indices}
    for kind, table in (("Particle", particles), ("Exception", exceptions)):
        get = getattr(force, f"get{kind}ParameterOffset")
        for index in range(getattr(force, f"getNum{kind}ParameterOffsets")()):
            parameter, row, *scales = get(index)
            table[row] += value[parameter] * np.array(scales, dtype=np.float64)


def _lj_tables(force: openmm.CustomNonbondedForce, name: str) -> TermTables | None:
    """CHARMM's Lennard-Jones by pairs of types; it is then evaluated together with Coulomb."""
    expression = without_spaces(force.getEnergyFunction())
    functions = {
        force.getTabulatedFunctionName(i): force.getTabulatedFunction(i)
        for i in range(force.getNumTabulatedFunctions())
    }
    parameters = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    plain = (
        expression in LENNARD_JONES_TABLES
        and force.getNonbondedMethod() == openmm.CustomNonbondedForce.NoCutoff
        and force.getNumInteractionGroups() == 0
        and parameters == ["type"]
        and set(functions) == {"acoef", "bcoef"}
        and all(type(function).__name__ == "Discrete2DFunction" for function in functions.values())
    )
    if not plain:
        return None
    a, b = (_discrete(functions[key]) for key in ("acoef", "bcoef"))
    n = force.getNumParticles()
    kind = np.array([force.getParticleParameters(p)[0] for p in range(n)]).round().astype(int)
    excluded = [force.getExclusionParticles(index) for index in range(force.getNumExclusions())]
    i, j = np.nonzero(np.triu(exclusion_matrix(n, excluded)))
    c12 = a[kind[i], kind[j]]
    c12 = c12**2 if LENNARD_JONES_TABLES[expression] else c12
    rows = np.stack((c12, b[kind[i], kind[j]], np.zeros(len(i))), axis=1)
    return TermTables(pairs=np.stack((i, j), axis=1), pair_parameters=rows)


def _lj_bonds(force: openmm.CustomBondForce, name: str) -> TermTables | None:
    """CHARMM's Lennard-Jones between atoms three bonds apart."""
    names = [force.getPerBondParameterName(i) for i in range(force.getNumPerBondParameters())]
    if without_spaces(force.getEnergyFunction()) not in LENNARD_JONES_BONDS or set(names) != {"sigma", "epsilon"}:
        return None
    rows = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    s, e = names.index("sigma"), names.index("epsilon")
    return TermTables(
        pairs=_index([row[:2] for row in rows], 2),
        pair_parameters=_table([(*_lennard_jones(p[s], p[e]), 0.0) for *_, p in rows], 3),
    )


def _harmonic_impropers(force: openmm.CustomTorsionForce, name: str) -> TermTables | None:
    names = [force.getPerTorsionParameterName(i) for i in range(force.getNumPerTorsionParameters())]
    if without_spaces(force.getEnergyFunction()) not in HARMONIC_IMPROPERS or set(names) != {"k", "theta0"}:
        return None
    rows = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    k, theta = names.index("k"), names.index("theta0")
    return TermTables(
        impropers=_index([row[:4] for row in rows], 4),
        improper_parameters=_table([(p[k], p[theta]) for *_, p in rows], 2),
    )


_READERS: dict[str, Callable[..., TermTables]] = {
    "HarmonicBondForce": _bonds,
    "HarmonicAngleForce": _angles,
    "PeriodicTorsionForce": _torsions,
    "RBTorsionForce": _ryckaert_bellemans,
    "CMAPTorsionForce": _cmaps,
    "NonbondedForce": _nonbonded,
    **CUSTOM_READERS,
}
# Expressions that the CHARMM files write: evaluated by code made for them, together with other terms of their kind.
_WELL_KNOWN: dict[str, Callable[..., TermTables | None]] = {
    "CustomNonbondedForce": _lj_tables,
    "CustomBondForce": _lj_bonds,
    "CustomTorsionForce": _harmonic_impropers,
}


def _lennard_jones(sigma: Floats | float, epsilon: Floats | float) -> tuple[Floats, Floats]:
    sixth = np.asarray(sigma, dtype=np.float64) ** 6
    return 4 * epsilon * sixth**2, 4 * epsilon * sixth


def _discrete(function: openmm.Discrete2DFunction) -> Floats:
    width, height, values = function.getFunctionParameters()
    return np.array(values, dtype=np.float64).reshape(height, width).T


def _index(rows: list, width: int) -> np.ndarray:
    return np.array([list(row) for row in rows], dtype=np.int64).reshape(len(rows), width)


def _table(rows: list, width: int) -> Floats:
    return np.array([list(row) for row in rows], dtype=np.float64).reshape(len(rows), width)
