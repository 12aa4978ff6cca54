"""A molecular generator as plain data and back: JSON for what is read, tensors for what is counted.

Nothing here can run code that comes from a file: the System is XML read by OpenMM, the rest are numbers and strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from boltzgen.coordinates.chart import CoordinateChart, CoordinateRow
from boltzgen.coordinates.internal import InternalCoordinates
from boltzgen.coordinates.symmetry import SymmetryGroup
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.energy import potential as choose_potential
from boltzgen.errors import CheckpointError
from boltzgen.flows.assembly import molecular_flow
from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow
from boltzgen.flows.placed import CartesianFrame, PlacedFlow
from boltzgen.forcefields import Provenance
from boltzgen.molecule import Molecule
from boltzgen.preparation.setup_report import SetupRecord
from boltzgen.preparation.term_audit import ResidueTerms, TermAudit

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["describe", "rebuild"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def describe(generator: BoltzmannGenerator) -> tuple[str, dict[str, Tensor]]:
    """Everything about a generator but the parameters of its flow.

    Returns
    -------
    text : str
        JSON: molecule, internal coordinates, network sizes, potential, seed, precision.
    arrays : {name: tensor}
        What must come back to the last bit.

    Raises
    ------
    CheckpointError
        If the flow is not that of a molecule.
    """
    flow, molecule = generator.flow, generator.molecule
    if not isinstance(flow, (MolecularFlow, PlacedFlow)) or molecule is None:
        raise CheckpointError(
            f"only generators of molecules can be saved, not one with a {type(flow).__name__}: "
            "save the state_dict of your own flow instead"
        )
    chart = flow.chart
    text = {
        "molecule": _molecule_to_json(molecule),
        "zmatrix": {"n_heavy": chart.internal.zmatrix.n_heavy},
        "coordinates": [asdict(row) for row in chart.rows],
        "symmetry": [asdict(group) for group in chart.symmetry],
        "config": asdict(flow.config),
        "kinds": generator.kinds,
        "alignment": None if generator.alignment is None else generator.alignment.strength,
        "potential": generator.potential.name,
        "kT": generator.kT,
        "seed": generator.seed,
        "dtype": str(next(flow.parameters()).dtype).removeprefix("torch."),
    }
    zmatrix = chart.internal.zmatrix
    arrays = {
        "molecule.positions": torch.tensor(molecule.positions.value_in_unit(unit.nanometer), dtype=torch.float64),
        "zmatrix.atoms": torch.tensor(zmatrix.atoms, dtype=torch.int64),
        "zmatrix.references": torch.tensor(zmatrix.references, dtype=torch.int64),
        "zmatrix.is_improper": torch.tensor(zmatrix.is_improper, dtype=torch.bool),
        "zmatrix.is_linear": torch.tensor(zmatrix.is_linear, dtype=torch.bool),
        "chart.factor": torch.tensor(chart.factor, dtype=torch.float64),
    }
    if isinstance(flow, PlacedFlow) and flow.frame is not None:
        arrays["frame.reference"] = torch.tensor(flow.frame.reference, dtype=torch.float64)
        arrays["frame.factor"] = torch.tensor(flow.frame.factor, dtype=torch.float64)
    return json.dumps(text), arrays


def rebuild(
    text: str,
    arrays: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
    molecule: Molecule | None = None,
    potential: Potential | None = None,
) -> BoltzmannGenerator:
    """A generator from `describe`, with untrained parameters.

    Parameters
    ----------
    text, arrays :
        As `describe` returned them.
    molecule, potential : optional
        Used where they exist already; they must be those of the description.

    Raises
    ------
    CheckpointError
        If the description is damaged, or its molecule cannot be built with this OpenMM.
    """
    from boltzgen.generator import BoltzmannGenerator

    try:
        data = json.loads(text)
        molecule = molecule or _molecule_from_json(data["molecule"], arrays["molecule.positions"].numpy())
        kT, seed, backend = float(data["kT"]), int(data["seed"]), str(data["potential"])
        potential = potential or choose_potential(molecule, "openmm" if backend == "openmm" else "auto")
        flow = molecular_flow(
            *(_chart(data, arrays), GeneratorConfig(**data["config"])),
            **data.get("kinds", {"coordinates": "internal", "hydrogens": "flow"}),
            potential=potential,
            kT=kT,
            frame=_frame(arrays),
        )
        flow.to(device=device, dtype=_DTYPES[data["dtype"]])
        generator = BoltzmannGenerator(flow, potential, molecule=molecule, kT=kT, seed=seed)
        if data.get("alignment") is not None:
            generator.set_alignment(float(data["alignment"]))
        return generator
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, openmm.OpenMMException) as error:
        raise CheckpointError(
            f"the description of the generator is damaged: {type(error).__name__}: {error}"
        ) from error


def _frame(arrays: Mapping[str, Tensor]) -> CartesianFrame | None:
    if "frame.reference" not in arrays:
        return None
    return CartesianFrame(arrays["frame.reference"].numpy(), arrays["frame.factor"].numpy())


def _chart(data: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> CoordinateChart:
    zmatrix = ZMatrix(
        atoms=arrays["zmatrix.atoms"].numpy(),
        references=arrays["zmatrix.references"].numpy(),
        is_improper=arrays["zmatrix.is_improper"].numpy(),
        is_linear=arrays["zmatrix.is_linear"].numpy(),
        n_heavy=int(data["zmatrix"]["n_heavy"]),
    )
    rows = tuple(CoordinateRow(**{**row, "atoms": tuple(row["atoms"])}) for row in data["coordinates"])
    symmetry = tuple(
        SymmetryGroup(**{key: _tuples(value) for key, value in group.items()}) for group in data["symmetry"]
    )
    return CoordinateChart(InternalCoordinates(zmatrix), rows, arrays["chart.factor"].numpy(), symmetry)


def _molecule_to_json(molecule: Molecule) -> dict[str, Any]:
    return {
        "system": openmm.XmlSerializer.serialize(molecule.system),
        "system_hash": molecule.system_hash,
        "topology": _topology_to_json(molecule.topology),
        "temperature_K": molecule.temperature.value_in_unit(unit.kelvin),
        "provenance": asdict(molecule.provenance),
        "setup": asdict(molecule.setup),
    }


def _molecule_from_json(data: Mapping[str, Any], positions: np.ndarray) -> Molecule:
    system = openmm.XmlSerializer.deserialize(data["system"])
    if not isinstance(system, openmm.System):
        raise CheckpointError("the description of the generator is damaged: it holds no OpenMM System")
    topology = _topology_from_json(data["topology"])
    kelvin = float(data["temperature_K"]) * unit.kelvin
    checked = Molecule.from_openmm(topology, system, positions * unit.nanometer, kelvin)
    provenance = Provenance(**{key: _tuples(value) for key, value in data["provenance"].items()})
    molecule = Molecule(topology, system, checked.positions, kelvin, provenance, _setup(data["setup"]))
    if molecule.system_hash != data["system_hash"]:
        raise CheckpointError("the System in the file is not the one that was saved: the file is damaged")
    return molecule


def _setup(data: Mapping[str, Any]) -> SetupRecord:
    values = {key: _tuples(value) for key, value in data.items()}
    if data.get("audit") is not None:
        residues = tuple(ResidueTerms(**residue) for residue in data["audit"]["residues"])
        values["audit"] = TermAudit(residues, tuple(data["audit"]["missing"]))
    values["added_hydrogens"] = {key: tuple(names) for key, names in data["added_hydrogens"].items()}
    return SetupRecord(**values)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _topology_to_json(topology: app.Topology) -> dict[str, Any]:
    chains = [
        {
            "id": chain.id,
            "residues": [
                {
                    "name": residue.name,
                    "id": residue.id,
                    "insertion_code": residue.insertionCode,
                    "atoms": [[atom.index, atom.name, atom.element.symbol] for atom in residue.atoms()],
                }
                for residue in chain.residues()
            ],
        }
        for chain in topology.chains()
    ]
    bonds = [
        [bond[0].index, bond[1].index, None if bond.type is None else str(bond.type), bond.order]
        for bond in topology.bonds()
    ]
    return {"chains": chains, "bonds": bonds}


def _topology_from_json(data: Mapping[str, Any]) -> app.Topology:
    topology = app.Topology()
    atoms: dict[int, Any] = {}
    for chain in data["chains"]:
        new_chain = topology.addChain(chain["id"])
        for residue in chain["residues"]:
            new_residue = topology.addResidue(residue["name"], new_chain, residue["id"], residue["insertion_code"])
            for index, name, symbol in residue["atoms"]:
                atoms[index] = topology.addAtom(name, app.Element.getBySymbol(symbol), new_residue)
                if atoms[index].index != index:
                    raise CheckpointError("the description of the generator is damaged: atoms are out of order")
    kinds = {str(kind): kind for kind in (app.Single, app.Double, app.Triple, app.Aromatic, app.Amide)}
    for first, second, kind, order in data["bonds"]:
        topology.addBond(atoms[first], atoms[second], kinds.get(kind), order)
    return topology
