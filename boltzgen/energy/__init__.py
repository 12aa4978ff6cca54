"""Energies and forces: any OpenMM System, batched and differentiable, with honest counts."""

from __future__ import annotations

import logging
from typing import Any

from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.energy.analytic import AnalyticTarget, DoubleWell, GaussianMixture, ManyWell
from boltzgen.energy.base import BatchedPotential, EvaluationCounts, Potential, RawEvaluation, Status
from boltzgen.energy.capping import CappedPotential
from boltzgen.energy.compiled import CompiledPotential
from boltzgen.energy.explanation import Contribution, Explanation
from boltzgen.energy.function import AsePotential, FunctionPotential, SampleFunctionPotential
from boltzgen.energy.mass_metric import log_mass_metric
from boltzgen.energy.openmm import OpenMMPotential
from boltzgen.energy.simplification import simplify
from boltzgen.errors import PotentialError

__all__ = [
    "AlignmentPenalty",
    "AnalyticTarget",
    "AsePotential",
    "BatchedPotential",
    "CappedPotential",
    "CompiledPotential",
    "Contribution",
    "DoubleWell",
    "EvaluationCounts",
    "Explanation",
    "FunctionPotential",
    "GaussianMixture",
    "ManyWell",
    "OpenMMPotential",
    "Potential",
    "RawEvaluation",
    "SampleFunctionPotential",
    "Status",
    "log_mass_metric",
    "potential",
    "simplify",
]

logger = logging.getLogger(__name__)


def potential(
    molecule: Any, backend: str = "auto", *, positions: Any = None, **options: Any
) -> CompiledPotential | OpenMMPotential:
    """The fastest potential that is right for a molecule.

    Parameters
    ----------
    molecule : Molecule or openmm.System
        What to evaluate.
    backend : "auto", "compiled" or "openmm"
        "auto" compiles the System where that verifies and takes OpenMM otherwise; the reason is logged and kept in
        `fallback_reason`.
    positions : (N, 3) array or Quantity, optional
        nm; needed with a System, to verify its energy.
    **options
        For the constructor of the backend; not with "auto".

    Raises
    ------
    PotentialError
        Unknown backend, or the chosen one cannot evaluate this System.
    """
    if backend == "compiled":
        return CompiledPotential(molecule, positions=positions, **options)
    if backend == "openmm":
        return OpenMMPotential(molecule, positions=positions, **options)
    if backend != "auto":
        raise PotentialError(f"backend must be 'auto', 'compiled' or 'openmm', not {backend!r}")
    if options:
        raise PotentialError(f"name a backend to pass it options ({', '.join(options)})")
    if positions is None and getattr(molecule, "positions", None) is None:
        raise PotentialError("positions are needed to verify the energy of a System; give positions=")
    try:
        return CompiledPotential(molecule, positions=positions)
    except PotentialError as error:
        logger.warning("%s", error)
        fallback = OpenMMPotential(molecule, positions=positions)
        fallback.fallback_reason = str(error)
        return fallback
