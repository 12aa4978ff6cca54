"""Particle types of pairwise tables, numbered the same way in every process.

OpenMM numbers the types of a Lennard-Jones table in the order of a Python set, which changes from process to process;
two Systems of the same molecule then serialize, and hash, differently although they are equal.
"""

from __future__ import annotations

import numpy as np
import openmm

__all__ = ["number_types_by_first_use"]


def number_types_by_first_use(system: openmm.System) -> None:
    """Renumber, in place, the table indices of each CustomNonbondedForce in the order in which particles use them."""
    for force in system.getForces():
        if isinstance(force, openmm.CustomNonbondedForce) and _is_table_of_types(force):
            _renumber(force)


def _is_table_of_types(force: openmm.CustomNonbondedForce) -> bool:
    functions = [force.getTabulatedFunction(k) for k in range(force.getNumTabulatedFunctions())]
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    energy = force.getEnergyFunction().replace(" ", "")
    calls = [f"{force.getTabulatedFunctionName(k)}(type1,type2)" for k in range(len(functions))]
    only_in_tables = energy
    for call in calls:
        only_in_tables = only_in_tables.replace(call, "")
    return (
        names == ["type"]
        and bool(functions)
        and all(isinstance(function, openmm.Discrete2DFunction) for function in functions)
        and "type" not in only_in_tables
    )


def _renumber(force: openmm.CustomNonbondedForce) -> None:
    old = [int(force.getParticleParameters(i)[0]) for i in range(force.getNumParticles())]
    used = list(dict.fromkeys(old))
    new = {was: now for now, was in enumerate(used)}
    for i, was in enumerate(old):
        force.setParticleParameters(i, [float(new[was])])
    for k in range(force.getNumTabulatedFunctions()):
        function = force.getTabulatedFunction(k)
        n_x, n_y, values = function.getFunctionParameters()
        table = np.reshape(values, (n_y, n_x))[np.ix_(used, used)]  # the first index runs fastest
        function.setFunctionParameters(len(used), len(used), table.ravel().tolist())
