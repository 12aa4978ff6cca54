"""Energies and forces: any OpenMM System, batched and differentiable, with honest counts."""

from __future__ import annotations

import logging
from typing import Any

from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.energy.analytic import AnalyticTarget, DoubleWell, GaussianMixture, ManyWell
from boltzgen.energy.base import BatchedPotential, EvaluationCounts, Potential, RawEvaluation, Status
from boltzgen.energy.compiled import CompiledPotential
from boltzgen.energy.function import AsePotential, FunctionPotential, SampleFunctionPotential
from boltzgen.energy.openmm import OpenMMPotential
from boltzgen.energy.simplification import simplify
from boltzgen.errors import PotentialError

__all__ = [
    "AlignmentPenalty",
    "AnalyticTarget",
    "AsePotential",
    "BatchedPotential",
    "CompiledPotential",
    "DoubleWell",
    "EvaluationCounts",
    "FunctionPotential",
    "GaussianMixture",
    "ManyWell",
    "OpenMMPotential",
    "Potential",
    "RawEvaluation",
    "SampleFunctionPotential",
    "Status",
    "potential",
    "simplify",
]

logger = logging.getLogger(__name__)


def potential(molecule: Any, backend: str = "auto", **options: Any) -> CompiledPotential | OpenMMPotential:
    """The fastest potential that is right for a molecule.

    Parameters
    ----------
    molecule : Molecule
        Whose System to evaluate.
    backend : "auto", "compiled" or "openmm"
        "auto" compiles the System where that verifies and takes OpenMM otherwise; the reason is logged and kept in
        `fallback_reason`.
    **options
        For the constructor of the backend; not with "auto".

    Raises
    ------
    PotentialError
        Unknown backend, or the chosen one cannot evaluate this System.
    """
    if backend == "compiled":
        return CompiledPotential(molecule, **options)
    if backend == "openmm":
        return OpenMMPotential(molecule, **options)
    if backend != "auto":
        raise PotentialError(f"backend must be 'auto', 'compiled' or 'openmm', not {backend!r}")
    if options:
        raise PotentialError(f"name a backend to pass it options ({', '.join(options)})")
    try:
        return CompiledPotential(molecule)
    except PotentialError as error:
        logger.warning("%s", error)
        fallback = OpenMMPotential(molecule)
        fallback.fallback_reason = str(error)
        return fallback
