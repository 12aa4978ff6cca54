"""Boltzmann generators for molecules: from a PDB file to free energies with honest error bars.

Names are imported when first used, so that ``import boltzgen`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BasinFreeEnergy": "free_energy",
    "BoltzgenError": "errors",
    "BoltzmannGenerator": "generator",
    "CheckpointError": "errors",
    "Ensemble": "ensemble",
    "Estimate": "free_energy",
    "EstimateError": "errors",
    "ForceFieldError": "errors",
    "FreeEnergies": "free_energy",
    "GeneratorConfig": "flows.molecular",
    "History": "training",
    "Molecule": "molecule",
    "OutputError": "errors",
    "PotentialError": "errors",
    "RunOptions": "run",
    "SelectionError": "errors",
    "Stage": "training",
    "StructureError": "errors",
    "Training": "training",
    "Verdict": "diagnostics",
    "anneal": "training",
    "explore": "training",
    "finetune": "training",
    "parse_basin": "collective_variables",
    "pretrain": "pretraining",
    "write_report": "report",
}
__all__ = [
    "BasinFreeEnergy",
    "BoltzgenError",
    "BoltzmannGenerator",
    "CheckpointError",
    "Ensemble",
    "Estimate",
    "EstimateError",
    "ForceFieldError",
    "FreeEnergies",
    "GeneratorConfig",
    "History",
    "Molecule",
    "OutputError",
    "PotentialError",
    "RunOptions",
    "SelectionError",
    "Stage",
    "StructureError",
    "Training",
    "Verdict",
    "__version__",
    "anneal",
    "collective_variables",
    "coordinates",
    "diagnostics",
    "energy",
    "errors",
    "explore",
    "finetune",
    "flows",
    "forcefields",
    "free_energy",
    "losses",
    "parse_basin",
    "plotting",
    "pretrain",
    "report",
    "run",
    "sampling",
    "training",
    "viewing",
    "write_report",
]

if TYPE_CHECKING:
    from boltzgen import (
        collective_variables,
        coordinates,
        diagnostics,
        energy,
        errors,
        flows,
        forcefields,
        free_energy,
        losses,
        plotting,
        report,
        run,
        sampling,
        training,
        viewing,
    )
    from boltzgen.collective_variables import parse_basin
    from boltzgen.diagnostics import Verdict
    from boltzgen.ensemble import Ensemble
    from boltzgen.errors import (
        BoltzgenError,
        CheckpointError,
        EstimateError,
        ForceFieldError,
        OutputError,
        PotentialError,
        SelectionError,
        StructureError,
    )
    from boltzgen.flows.molecular import GeneratorConfig
    from boltzgen.free_energy import BasinFreeEnergy, Estimate, FreeEnergies
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule
    from boltzgen.pretraining import pretrain
    from boltzgen.report import write_report
    from boltzgen.run import RunOptions
    from boltzgen.training import History, Stage, Training, anneal, explore, finetune


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOMES:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
