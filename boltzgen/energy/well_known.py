"""Energy expressions that force-field files write, and OpenMM's Coulomb constant."""

import re

__all__ = ["COULOMB", "HARMONIC_IMPROPERS", "LENNARD_JONES_BONDS", "LENNARD_JONES_TABLES", "without_spaces"]

# 1/(4 pi eps0) in kJ nm / (mol e^2), as OpenMM's native forces have it (ONE_4PI_EPS0 of SimTKOpenMMRealType.h).
COULOMB = 138.93545764438198

# Of OpenMM's force-field reader, CHARMM and Amber topologies; True if the first table holds square roots.
LENNARD_JONES_TABLES = {
    "acoef(type1,type2)/r^12-bcoef(type1,type2)/r^6": False,
    "(a/r6)^2-b/r6;r6=r^6;a=acoef(type1,type2);b=bcoef(type1,type2)": True,
    "a/r^12-b/r^6;a=acoef(type1,type2);b=bcoef(type1,type2)": False,
}
LENNARD_JONES_BONDS = {"4*epsilon*((sigma/r)^12-(sigma/r)^6)", "4.0*epsilon*((sigma/r)^12-(sigma/r)^6)"}
HARMONIC_IMPROPERS = {
    "k*min(dtheta,2*pi-dtheta)^2;dtheta=abs(theta-theta0);pi=3.141592653589793",
    "k*min(dtheta,2*pi-dtheta)^2;dtheta=abs(theta-theta0);pi=3.1415926535",
}


def without_spaces(expression: str) -> str:
    """An expression as it stands in these tables."""
    return re.sub(r"\s+", "", expression).rstrip(";")
