"""OpenMM's custom and implicit-solvent forces to expressions and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openmm
from openmm import unit

from boltzgen.energy.expressions import Expression, Tabulated, parse_expression, tabulated_function
from boltzgen.energy.interactions import BornModel, BornStep, CustomInteractions, CustomPairs, Floats, Geometry
from boltzgen.energy.tables import TermTables
from boltzgen.energy.well_known import COULOMB
from boltzgen.errors import PotentialError

__all__ = ["CUSTOM_READERS", "exclusion_matrix"]

# Functions of CustomCompoundBondForce, with their number of arguments.
_CALLS = {"distance": 2, "angle": 3, "dihedral": 4, "pointdistance": 6, "pointangle": 9, "pointdihedral": 12}
_AXES = "xyz"


def exclusion_matrix(n: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Which of (n, n) pairs of atoms interact: all but the diagonal and the pairs given."""
    included = ~np.eye(n, dtype=bool)
    for i, j in pairs:
        included[i, j] = included[j, i] = False
    return included


def _custom_bond(force: openmm.CustomBondForce, name: str) -> TermTables:
    return _few(force, name, "Bond", {"r": Geometry("r", "distance", (0, 1))})


def _custom_angle(force: openmm.CustomAngleForce, name: str) -> TermTables:
    return _few(force, name, "Angle", {"theta": Geometry("theta", "angle", (0, 1, 2))})


def _custom_torsion(force: openmm.CustomTorsionForce, name: str) -> TermTables:
    return _few(force, name, "Torsion", {"theta": Geometry("theta", "dihedral", (0, 1, 2, 3))})


def _custom_external(force: openmm.CustomExternalForce, name: str) -> TermTables:
    return _few(force, name, "Particle", {axis: Geometry(axis, axis, (0,)) for axis in _AXES})


def _few(force: Any, name: str, item: str, geometry: Mapping[str, Geometry]) -> TermTables:
    """A force whose interactions have a fixed number of atoms and fixed variables."""
    expression = _parse(force, name, force.getEnergyFunction())
    get = getattr(force, f"get{item}Parameters")
    rows = [get(i) for i in range(getattr(force, f"getNum{item}s")())]
    atoms = np.array([row[:-1] for row in rows], dtype=np.int64).reshape(len(rows), -1 if rows else 0)
    used = tuple(g for variable, g in geometry.items() if variable in expression.variables)
    return _interactions(force, item, name, expression, used, atoms, [row[-1] for row in rows])


def _custom_compound(force: openmm.CustomCompoundBondForce, name: str) -> TermTables:
    expression = _parse(force, name, force.getEnergyFunction(), calls=_CALLS)
    rows = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    count = force.getNumParticlesPerBond()
    atoms = np.array([list(row[0]) for row in rows], dtype=np.int64).reshape(len(rows), count)
    parameters = {force.getPerBondParameterName(i) for i in range(force.getNumPerBondParameters())}
    names = {variable: f"geometry{k}" for k, variable in enumerate(sorted(expression.variables - parameters))}
    found = {variable: _compound_variable(variable, count, name) for variable in names}
    geometry = tuple(Geometry(names[v], *entry) for v, entry in found.items() if entry is not None)
    renamed = expression.rename({v: names[v] for v, entry in found.items() if entry is not None})
    return _interactions(force, "Bond", name, renamed, geometry, atoms, [row[1] for row in rows])


def _compound_variable(variable: str, count: int, name: str) -> tuple[str, tuple[int, ...]] | None:
    """Kind and particles of a name in a compound expression; None for a parameter."""
    if "(" not in variable:
        axis, number = variable[:1], variable[1:]
        if axis in _AXES and number.isdigit() and 1 <= int(number) <= count:
            return axis, (int(number) - 1,)
        return None
    function, rest = variable.rstrip(")").split("(")
    arguments = rest.split(",")
    particles = []
    for argument in arguments:
        if argument[:1] != "p" or not argument[1:].isdigit() or not 1 <= int(argument[1:]) <= count:
            raise PotentialError(f"{name}: {argument!r} in {variable} is not one of the particles p1 to p{count}")
        particles.append(int(argument[1:]) - 1)
    return function, tuple(particles)


def _interactions(
    force: Any,
    item: str,
    name: str,
    expression: Expression,
    geometry: tuple[Geometry, ...],
    atoms: np.ndarray,
    values: list[Any],
) -> TermTables:
    get = getattr(force, f"getPer{item}ParameterName")
    names = [get(i) for i in range(getattr(force, f"getNumPer{item}Parameters")())]
    table = np.array([list(row) for row in values], dtype=np.float64).reshape(len(values), len(names))
    parameters: dict[str, Floats | float] = {**_global_parameters(force), **dict(zip(names, table.T, strict=True))}
    _check_known(expression, name, [*parameters, *(g.variable for g in geometry)])
    if len(atoms) == 0:
        return TermTables()
    return TermTables(custom=[CustomInteractions(expression, geometry, atoms, parameters)])


def _custom_nonbonded(force: openmm.CustomNonbondedForce, name: str) -> TermTables:
    if force.getNonbondedMethod() != openmm.CustomNonbondedForce.NoCutoff:
        raise PotentialError(f"{name} uses a cut-off; build the System with nonbondedMethod=NoCutoff")
    if force.getNumInteractionGroups():
        raise PotentialError(f"{name} has interaction groups, which cannot be compiled; use OpenMMPotential")
    if force.getNumComputedValues():
        raise PotentialError(f"{name} has computed values, which cannot be compiled; use OpenMMPotential")
    expression = _parse(force, name, force.getEnergyFunction())
    particles, n = _particle_parameters(force)
    constants = _global_parameters(force)
    pairs = [force.getExclusionParticles(i) for i in range(force.getNumExclusions())]
    _check_known(expression, name, ["r", *constants, *(f"{key}{k}" for key in particles for k in (1, 2))])
    return TermTables(custom_pairs=[CustomPairs(expression, particles, constants, exclusion_matrix(n, pairs))])


def _custom_gb(force: openmm.CustomGBForce, name: str) -> TermTables:
    if force.getNonbondedMethod() != openmm.CustomGBForce.NoCutoff:
        raise PotentialError(f"{name} uses a cut-off; build the System with nonbondedMethod=NoCutoff")
    particles, n = _particle_parameters(force)
    constants = _global_parameters(force)
    excluded = exclusion_matrix(n, [force.getExclusionParticles(i) for i in range(force.getNumExclusions())])
    over = {
        openmm.CustomGBForce.SingleParticle: None,
        openmm.CustomGBForce.ParticlePair: excluded,
        openmm.CustomGBForce.ParticlePairNoExclusions: exclusion_matrix(n, []),
    }
    values, energies, known = [], [], list(particles)
    for index in range(force.getNumComputedValues()):
        key, text, kind = force.getComputedValueParameters(index)
        values.append(_born_step(force, name, key, text, over[kind], known, constants))
        if index and over[kind] is not None:
            raise PotentialError(f"{name}: only the first computed value may be a sum over pairs")
        known.append(key)
    for index in range(force.getNumEnergyTerms()):
        text, kind = force.getEnergyTermParameters(index)
        energies.append(_born_step(force, name, "", text, over[kind], known, constants))
    return TermTables(born=[BornModel(particles, constants, tuple(values), tuple(energies))])


def _born_step(
    force: Any, name: str, key: str, text: str, pairs: np.ndarray | None, known: list[str], constants: dict[str, float]
) -> BornStep:
    expression = _parse(force, name, text)
    by_particle = known if pairs is None else [f"{value}{k}" for value in known for k in (1, 2)]
    _check_known(expression, name, [*(_AXES if pairs is None else "r"), *by_particle, *constants])
    return BornStep(key, expression, pairs)


# The Born radii of Onufriev, Bashford and Case (2004), set II, and the surface term of Schaefer, Bartels and Karplus
# (1998), as OpenMM's theory guide gives them for GBSAOBCForce.
_OBC_INTEGRAL = """select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/U^2-1/L^2)+0.5*log(L/U)/r+C), 0);
C=select(step(sr2-r-or1), 2*(1/or1-1/L), 0); U=r+sr2; L=max(or1, abs(r-sr2))"""
_OBC_RADIUS = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/(or+0.009)); psi=I*or"
_OBC_SELF = "-0.5*scale*charge^2/B+surface*(or+0.009+0.14)^2*((or+0.009)/B)^6"
_OBC_PAIR = "-scale*charge1*charge2/f; f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"


def _obc(force: openmm.GBSAOBCForce, name: str) -> TermTables:
    if force.getNonbondedMethod() != openmm.GBSAOBCForce.NoCutoff:
        raise PotentialError(f"{name} uses a cut-off; build the System with nonbondedMethod=NoCutoff")
    n = force.getNumParticles()
    rows = [force.getParticleParameters(i) for i in range(n)]
    charge, radius = (np.array([row[k]._value for row in rows], dtype=np.float64) for k in (0, 1))
    scale = np.array([float(row[2]) for row in rows])
    surface = force.getSurfaceAreaEnergy().value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
    constants = {
        "scale": COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()),
        "surface": 4 * np.pi * surface,
    }
    particles = {"charge": charge, "or": radius - 0.009, "sr": scale * (radius - 0.009)}
    everything = exclusion_matrix(n, [])
    values = (BornStep("I", _plain(_OBC_INTEGRAL), everything), BornStep("B", _plain(_OBC_RADIUS), None))
    energies = (BornStep("", _plain(_OBC_SELF), None), BornStep("", _plain(_OBC_PAIR), everything))
    return TermTables(born=[BornModel(particles, constants, values, energies)])


CUSTOM_READERS: dict[str, Callable[..., TermTables]] = {
    "CustomBondForce": _custom_bond,
    "CustomAngleForce": _custom_angle,
    "CustomTorsionForce": _custom_torsion,
    "CustomExternalForce": _custom_external,
    "CustomCompoundBondForce": _custom_compound,
    "CustomNonbondedForce": _custom_nonbonded,
    "CustomGBForce": _custom_gb,
    "GBSAOBCForce": _obc,
}


def _plain(text: str) -> Expression:
    return parse_expression(text.replace("\n", " "))


def _parse(force: Any, name: str, text: str, calls: Mapping[str, int] | None = None) -> Expression:
    try:
        return parse_expression(text, functions=_functions(force), calls=calls)
    except PotentialError as error:
        raise PotentialError(f"{name}: {error}") from error


def _functions(force: Any) -> dict[str, Tabulated]:
    if not hasattr(force, "getNumTabulatedFunctions"):
        return {}
    indices = range(force.getNumTabulatedFunctions())
    return {force.getTabulatedFunctionName(i): tabulated_function(force.getTabulatedFunction(i)) for i in indices}


def _particle_parameters(force: Any) -> tuple[dict[str, Floats], int]:
    n = force.getNumParticles()
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    table = np.array([list(force.getParticleParameters(i)) for i in range(n)], dtype=np.float64)
    return dict(zip(names, table.reshape(n, len(names)).T, strict=True)), n


def _global_parameters(force: Any) -> dict[str, float]:
    indices = range(force.getNumGlobalParameters())
    return {force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i) for i in indices}


def _check_known(expression: Expression, name: str, known: list[str]) -> None:
    unknown = sorted(expression.variables - set(known))
    if unknown:
        raise PotentialError(f"{name}: {', '.join(unknown)} in {expression.text!r} is not defined")
