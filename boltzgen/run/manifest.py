"""What a run was made with: versions, hashes, machine, precision, seeds."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openmm
import torch
from openmm import unit

from boltzgen import __version__

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule
    from boltzgen.run.schedules import Schedule

__all__ = ["describe_molecule", "describe_training", "file_hash", "now", "versions"]

_PACKAGES = ("torch", "openmm", "openmmtools", "mdtraj", "numpy", "scipy", "safetensors", "zuko", "arviz-stats")


def versions() -> dict[str, str]:
    """Versions of boltzgen, Python and the packages that the numbers depend on; the platform."""
    found = {"boltzgen": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found | {"openmm_library": openmm.version.full_version}


def describe_molecule(molecule: Molecule, source: Path) -> dict[str, Any]:
    """The molecule, its force field and where they come from."""
    return {
        "file": source.name,
        "file_sha256": file_hash(source),
        "n_atoms": molecule.n_atoms,
        "system_sha256": molecule.system_hash,
        "temperature_K": molecule.temperature.value_in_unit(unit.kelvin),
        "kT_kJ_per_mol": molecule.kT,
        "force_field": asdict(molecule.provenance),
    }


def describe_training(generator: BoltzmannGenerator, schedule: Schedule) -> dict[str, Any]:
    """The generator, its domain, the stages, and what they run on."""
    from boltzgen.flows.molecular import MolecularFlow
    from boltzgen.flows.placed import PlacedFlow

    flow = generator.flow
    device = generator.device
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "seed": generator.seed,
        "device": str(device),
        **gpu,
        "cpu_threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "precision": {
            "flow": str(next(flow.parameters()).dtype).removeprefix("torch."),
            "training_energies": str(next(flow.parameters()).dtype).removeprefix("torch."),
            "final_energies_and_weights": "float64",
        },
        "potential": generator.potential.name,
        "potential_report": generator.potential.report().splitlines(),
        "n_parameters": sum(p.numel() for p in flow.parameters()),
        **generator.kinds,
        "networks": asdict(flow.config) if isinstance(flow, (MolecularFlow, PlacedFlow)) else None,
        "target": generator.other_target or "exp(-U/kT) of all atoms",
        "domain": generator.domain() or None,
        "budget": schedule.budget,
        "batch_size": schedule.batch_size,
        "stages": [asdict(stage) for stage in schedule.stages],
    }


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
