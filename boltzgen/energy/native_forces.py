"""Custom forces as the native OpenMM forces that compute the same: Lennard-Jones tables and generalized Born."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import numpy as np
import openmm
from numpy.typing import NDArray

from boltzgen.energy.well_known import COULOMB, LENNARD_JONES_BONDS, LENNARD_JONES_TABLES, without_spaces

__all__ = ["Kept", "Rewriting", "lennard_jones_in_nonbonded", "native_born"]

# Combination rules reproduce a table to the rounding of its twelfth powers, or not at all.
SAME_PARAMETER = 1e-12
# A bound on the work of setting up; not measured.
MAX_EXCEPTIONS = 100_000
# nm; two bonded atoms compressed to this distance cost 300 kJ/mol, others far more; see `native_born`.
MAX_ENGULFED = 0.06

_NUMBER = r"([0-9.]+(?:[eE][-+]?[0-9]+)?)"
_DIELECTRICS = r"\(1/soluteDielectric-1/solventDielectric\)"
_BORN_SELF = re.compile(rf"-0\.5\*{_NUMBER}\*{_DIELECTRICS}\*charge\^2/B")
_BORN_PAIR = re.compile(rf"-{_NUMBER}\*{_DIELECTRICS}\*charge1\*charge2/f")
_SURFACE = re.compile(rf"{_NUMBER}\*\(radius\+0\.14\)\^2\*\(radius/B\)\^6")
_DESCREENING = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0)",
    {"U": "r+sr2", "L": "max(or1,D)", "D": "abs(r-sr2)"},
)
_RADIUS = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)"
_OFFSET = 0.009  # nm, fixed in GBSAOBCForce

Floats = NDArray[np.float64]


class Kept(Exception):  # noqa: N818 (a reason, not an error)
    """Why a force that looks familiar stays as it is."""


@dataclass(frozen=True)
class Rewriting:
    """One force in the place of others.

    Attributes
    ----------
    description : str
        What was done, for reports.
    replaced : tuple of int
        Indices of the forces that go, ascending.
    force : openmm.Force
        Which takes the place of the first of them.
    """

    description: str
    replaced: tuple[int, ...]
    force: openmm.Force


def lennard_jones_in_nonbonded(system: openmm.System) -> Rewriting | None:
    """Lennard-Jones tables and 1-4 bonds moved into the NonbondedForce that holds the charges.

    Each atom gets sigma and epsilon of its type's diagonal entry. A pair whose entry the Lorentz-Berthelot rules do not
    reproduce becomes an exception with its own sigma and epsilon, and so does each pair that either force treats in
    its own way: its charge product is that of the NonbondedForce, its Lennard-Jones the sum of all parts.

    Raises
    ------
    Kept
        There is such a table, but cutoffs, offsets or unknown parameters forbid it.
    """
    forces = list(system.getForces())
    tables = [i for i, f in enumerate(forces) if _is(f, "CustomNonbondedForce", LENNARD_JONES_TABLES)]
    charges = [i for i, f in enumerate(forces) if type(f).__name__ == "NonbondedForce"]
    if not tables or not charges:
        return None
    if len(tables) > 1 or len(charges) > 1:
        raise Kept("Lennard-Jones tables: more than one CustomNonbondedForce or NonbondedForce")
    table, native = forces[tables[0]], forces[charges[0]]
    _check_table(table, native)
    bonds = [
        i
        for i, f in enumerate(forces)
        if _is(f, "CustomBondForce", LENNARD_JONES_BONDS)
        and _plain_bonds(f)
        and f.getForceGroup() == native.getForceGroup()
    ]
    merged, n_special = _merge(table, native, [forces[i] for i in bonds])
    description = (
        f"Lennard-Jones tables moved into the NonbondedForce, {n_special} pairs that the combination rules do "
        "not give (NBFIX) as exceptions"
    )
    return Rewriting(description, tuple(sorted([*tables, *charges, *bonds])), merged)


def native_born(system: openmm.System) -> Rewriting | None:
    """Generalized Born energy of the OBC2 model, with or without surface area, as a GBSAOBCForce.

    GBSAOBCForce has its own Coulomb constant, 2e-7 off the 138.935485 of `implicit/obc2.xml`; both dielectric constants
    are scaled by the ratio, which makes the energies equal. The two forces differ for an atom that lies wholly inside
    the descreening sphere of another, a term of the original model that the custom expression leaves out. That takes
    two atoms closer than the largest scaled radius minus the smallest radius, 0.009 nm for peptides; where it would
    take less than an overlap of 0.02 nm, the custom force stays.

    References
    ----------
    Onufriev, Bashford, Case (2004), Proteins 55, 383.

    Raises
    ------
    Kept
        It is OBC2 with a cutoff, or with parameters that the native force does not have.
    """
    found = [i for i, f in enumerate(system.getForces()) if type(f).__name__ == "CustomGBForce" and _is_obc2(f)]
    if not found:
        return None
    force = system.getForce(found[0])
    coulomb, surface, dielectrics = _born_constants(force)
    if force.getNonbondedMethod() != openmm.CustomGBForce.NoCutoff:
        raise Kept("generalized Born: it has a cutoff")
    if force.getNumExclusions() or force.getNumGlobalParameters() or force.getNumEnergyParameterDerivatives():
        raise Kept("generalized Born: it has exclusions or global parameters")
    atoms = np.array([force.getParticleParameters(i) for i in range(force.getNumParticles())])
    engulfed = float(atoms[:, 2].max() - atoms[:, 1].min())
    if engulfed > MAX_ENGULFED:
        raise Kept(f"generalized Born: the native force differs for atoms closer than {engulfed:.3f} nm")
    native = openmm.GBSAOBCForce()
    native.setForceGroup(force.getForceGroup())
    for charge, radius, scaled in atoms:
        native.addParticle(charge, radius + _OFFSET, scaled / radius)
    native.setSoluteDielectric(dielectrics["soluteDielectric"] * COULOMB / coulomb)
    native.setSolventDielectric(dielectrics["solventDielectric"] * COULOMB / coulomb)
    native.setSurfaceAreaEnergy(surface / (4 * np.pi))
    limit = f" (equal for atoms more than {engulfed:.3f} nm apart)" if engulfed > 0 else ""
    return Rewriting(f"generalized Born (OBC2) as the native force{limit}", (found[0],), native)


def _check_table(table: openmm.CustomNonbondedForce, native: openmm.NonbondedForce) -> None:
    def refuse(reason: str) -> None:
        raise Kept(f"Lennard-Jones tables: {reason}")

    names = [table.getPerParticleParameterName(i) for i in range(table.getNumPerParticleParameters())]
    functions = {table.getTabulatedFunctionName(i) for i in range(table.getNumTabulatedFunctions())}
    if native.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
        refuse("the NonbondedForce has a cutoff")
    if table.getNonbondedMethod() != openmm.CustomNonbondedForce.NoCutoff:
        refuse("the CustomNonbondedForce has a cutoff")
    if native.getForceGroup() != table.getForceGroup():
        refuse("they are in another force group than the charges")
    if table.getNumInteractionGroups() or names != ["type"] or functions != {"acoef", "bcoef"}:
        refuse("interaction groups, or parameters other than a type")
    if table.getNumGlobalParameters() or table.getNumEnergyParameterDerivatives():
        refuse("global parameters")
    if native.getNumParticleParameterOffsets() or native.getNumExceptionParameterOffsets():
        refuse("the NonbondedForce has parameter offsets")
    if any(native.getParticleParameters(i)[2]._value for i in range(native.getNumParticles())):
        refuse("the NonbondedForce has Lennard-Jones parameters of its own")


def _plain_bonds(force: openmm.CustomBondForce) -> bool:
    names = {force.getPerBondParameterName(i) for i in range(force.getNumPerBondParameters())}
    return (
        names == {"sigma", "epsilon"}
        and not force.usesPeriodicBoundaryConditions()
        and not force.getNumGlobalParameters()
        and not force.getNumEnergyParameterDerivatives()
    )


def _merge(
    table: openmm.CustomNonbondedForce, native: openmm.NonbondedForce, bonds: list[openmm.CustomBondForce]
) -> tuple[openmm.NonbondedForce, int]:
    """The NonbondedForce with everything in it, and the number of exceptions that only the table made necessary."""
    c12, c6 = _coefficients(table)
    kind = np.array([table.getParticleParameters(i)[0] for i in range(table.getNumParticles())]).round().astype(int)
    merged = copy.deepcopy(native)
    charge = np.array([native.getParticleParameters(i)[0]._value for i in range(len(kind))])
    own = [_sigma_epsilon(c12[t, t], c6[t, t]) for t in range(len(c12))]
    for atom, t in enumerate(kind):
        merged.setParticleParameters(atom, charge[atom], *own[t])

    products, wells = _special_pairs(native, table, bonds)
    special = _pairs_of_types(_deviating(c12, c6, own), kind) - products.keys() - wells.keys()
    if len(special) > MAX_EXCEPTIONS:
        raise Kept(f"Lennard-Jones tables: the combination rules fail for {len(special)} pairs")
    excluded = {_pair(*table.getExclusionParticles(i)) for i in range(table.getNumExclusions())}
    for i, j in sorted(special | products.keys() | wells.keys() | excluded):
        a, b = wells.get((i, j), (0.0, 0.0))
        if (i, j) not in excluded:
            a, b = a + c12[kind[i], kind[j]], b + c6[kind[i], kind[j]]
        merged.addException(i, j, products.get((i, j), charge[i] * charge[j]), *_sigma_epsilon(a, b), True)
    return merged, len(special)


def _special_pairs(
    native: openmm.NonbondedForce, table: openmm.CustomNonbondedForce, bonds: list[openmm.CustomBondForce]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], tuple[float, float]]]:
    """Charge products (e^2) of the native exceptions; r^-12 and r^-6 coefficients of these and of the bonds."""
    products: dict[tuple[int, int], float] = {}
    wells: dict[tuple[int, int], tuple[float, float]] = {}

    def add(pair: tuple[int, int], sigma: float, epsilon: float) -> None:
        a, b = wells.get(pair, (0.0, 0.0))
        wells[pair] = (a + 4 * epsilon * sigma**12, b + 4 * epsilon * sigma**6)

    for index in range(native.getNumExceptions()):
        i, j, product, sigma, epsilon = native.getExceptionParameters(index)
        products[_pair(i, j)] = product._value
        add(_pair(i, j), sigma._value, epsilon._value)
    for force in bonds:
        names = [force.getPerBondParameterName(i) for i in range(force.getNumPerBondParameters())]
        for index in range(force.getNumBonds()):
            i, j, values = force.getBondParameters(index)
            add(_pair(i, j), values[names.index("sigma")], values[names.index("epsilon")])
    return products, wells


def _coefficients(table: openmm.CustomNonbondedForce) -> tuple[Floats, Floats]:
    """Coefficients of r^-12 and r^-6 by pair of types."""
    found = {}
    for index in range(table.getNumTabulatedFunctions()):
        function = table.getTabulatedFunction(index)
        if type(function).__name__ != "Discrete2DFunction":
            raise Kept(f"Lennard-Jones tables: a {type(function).__name__}")
        width, height, values = function.getFunctionParameters()
        found[table.getTabulatedFunctionName(index)] = np.array(values, dtype=np.float64).reshape(height, width).T
    a, b = found["acoef"], found["bcoef"]
    if a.shape != b.shape or not (np.array_equal(a, a.T) and np.array_equal(b, b.T)):
        raise Kept("Lennard-Jones tables: they are not symmetric")
    return (a**2 if LENNARD_JONES_TABLES[without_spaces(table.getEnergyFunction())] else a), b


def _deviating(c12: Floats, c6: Floats, own: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Pairs of types whose entries the Lorentz-Berthelot rules do not reproduce."""
    sigma, epsilon = np.array(own).T
    sixth = ((sigma[:, None] + sigma) / 2) ** 6
    depth = 4 * np.sqrt(epsilon[:, None] * epsilon)
    same = (np.abs(depth * sixth**2 - c12) <= SAME_PARAMETER * np.abs(c12)) & (
        np.abs(depth * sixth - c6) <= SAME_PARAMETER * np.abs(c6)
    )
    return ~same


def _pairs_of_types(wanted: NDArray[np.bool_], kind: NDArray[np.int64]) -> set[tuple[int, int]]:
    """All pairs of atoms whose types are wanted."""
    members = [np.flatnonzero(kind == t).tolist() for t in range(len(wanted))]
    return {
        _pair(i, j) for s, t in np.argwhere(np.triu(wanted)).tolist() for i in members[s] for j in members[t] if i != j
    }


def _sigma_epsilon(c12: float, c6: float) -> tuple[float, float]:
    if c12 == 0 and c6 == 0:
        return 1.0, 0.0
    if not (c12 > 0 and c6 > 0):
        raise Kept("Lennard-Jones tables: a pair without repulsion or without attraction")
    return float((c12 / c6) ** (1 / 6)), float(c6**2 / (4 * c12))


def _is_obc2(force: openmm.CustomGBForce) -> bool:
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    values = [force.getComputedValueParameters(i) for i in range(force.getNumComputedValues())]
    if names != ["charge", "or", "sr"] or [v[0] for v in values] != ["I", "B"] or force.getNumTabulatedFunctions():
        return False
    (_, descreening, pairwise), (_, radius, single) = values
    head, definitions = _split(radius)
    return (
        _split(descreening) == _DESCREENING
        and head == _RADIUS
        and _is_offset(definitions.pop("offset", ""))
        and definitions == {"psi": "I*or", "radius": "or+offset"}
        and pairwise == openmm.CustomGBForce.ParticlePairNoExclusions
        and single == openmm.CustomGBForce.SingleParticle
    )


def _born_constants(force: openmm.CustomGBForce) -> tuple[float, float, dict[str, float]]:
    """Coulomb constant, 4 pi times the surface tension (kJ/mol/nm^2) and the two dielectric constants."""
    coulomb: dict[str, float] = {}
    surface, dielectrics = 0.0, {}
    for index in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(index)
        head, definitions = _split(expression)
        single = kind == openmm.CustomGBForce.SingleParticle
        if (match := _BORN_SELF.fullmatch(head)) and single:
            coulomb["self"] = float(match[1])
            dielectrics[index] = _dielectrics(definitions)
        elif (match := _BORN_PAIR.fullmatch(head)) and kind == openmm.CustomGBForce.ParticlePairNoExclusions:
            if definitions.get("f") != "sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))":
                raise Kept("generalized Born: an unknown pair energy")
            coulomb["pair"] = float(match[1])
            dielectrics[index] = _dielectrics(definitions)
        elif (match := _SURFACE.fullmatch(head)) and single and not surface:
            if definitions.get("radius") != "or+offset" or not _is_offset(definitions.get("offset", "")):
                raise Kept("generalized Born: an unknown surface energy")
            surface = float(match[1])
        else:
            raise Kept(f"generalized Born: the energy term {head!r}")
    terms = list(dielectrics.values())
    if len(terms) != 2 or terms[0] != terms[1] or len(coulomb) != 2 or coulomb["self"] != coulomb["pair"]:
        raise Kept("generalized Born: not one self and one pair energy with the same constants")
    return coulomb["self"], surface, terms[0]


def _dielectrics(definitions: dict[str, str]) -> dict[str, float]:
    try:
        return {name: float(definitions[name]) for name in ("soluteDielectric", "solventDielectric")}
    except (KeyError, ValueError) as error:
        raise Kept("generalized Born: dielectric constants that are not numbers") from error


def _is_offset(text: str) -> bool:
    try:
        return abs(float(text) - _OFFSET) < 1e-15
    except ValueError:
        return False


def _split(expression: str) -> tuple[str, dict[str, str]]:
    """An expression and its intermediate values, without white space."""
    head, *rest = without_spaces(expression).split(";")
    return head, dict(part.split("=", 1) for part in rest if part)


def _is(force: openmm.Force, kind: str, expressions: object) -> bool:
    return type(force).__name__ == kind and without_spaces(force.getEnergyFunction()) in expressions  # type: ignore[operator]


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
