"""``boltzgen setup``: read a structure, build its System, and say what a run would work on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from boltzgen.commands.inputs import add_molecule, read_molecule
from boltzgen.commands.stored import add_json, print_json

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "check a structure and its force field, without training"
EPILOG = """\
examples:
  boltzgen setup molecule.pdb
  boltzgen setup molecule.pdb --solvent obc2 --ph 5 --variant HIS5=HIP
  boltzgen setup molecule.pdb --out prepared --json

Shows what was read and added, how the energy is computed and checked against OpenMM, the domain of a generator, and
the torsions that basins may name. With --out the folder gets structure.pdb (with hydrogens) and system.xml (OpenMM).
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_molecule(parser, "structure of one molecule without solvent, PDB or mmCIF; or a recipe, TOML")
    parser.add_argument("--out", metavar="DIR", help="folder, new or empty (default: nothing is written)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Set up and say."""
    from boltzgen.coordinates.chart import CoordinateChart
    from boltzgen.energy import potential as choose_potential
    from boltzgen.output_files import OutputFolder

    folder = None if options.out is None else OutputFolder(options.out)
    molecule = read_molecule(options)
    potential = choose_potential(molecule)
    chart = CoordinateChart.for_molecule(molecule, potential)
    if folder is not None:
        folder.claim()
        options.started = True
        _write(molecule, folder)
    if options.json:
        files = [] if folder is None else [str(folder / name) for name in ("structure.pdb", "system.xml")]
        print_json(_values(molecule) | {"engine": potential.name, "domain": chart.domain(), "files": files})
        return
    print(molecule.report())
    print(f"\nenergy\n{potential.report()}")
    print(f"\ndomain\n{chart.domain()}")
    print(f"\ntorsions for basins: {', '.join(molecule.torsions) or 'none'}")
    if folder is not None:
        print(f"written: {folder / 'structure.pdb'}, {folder / 'system.xml'}")


def _values(molecule: Molecule) -> dict[str, Any]:
    from dataclasses import asdict

    from openmm import unit

    return {
        "n_atoms": molecule.n_atoms,
        "n_heavy_atoms": len(molecule.heavy_atoms),
        "n_constraints": molecule.system.getNumConstraints(),
        "temperature_K": molecule.temperature.value_in_unit(unit.kelvin),
        "kT_kJ_per_mol": molecule.kT,
        "force_field": asdict(molecule.provenance),
        "system_sha256": molecule.system_hash,
        "added_hydrogens": {name: list(atoms) for name, atoms in molecule.setup.added_hydrogens.items()},
        "torsions": {name: list(atoms) for name, atoms in molecule.torsions.items()},
    }


def _write(molecule: Molecule, folder: Any) -> None:
    import io

    import openmm
    from openmm import app

    from boltzgen.output_files import write_bytes

    text = io.StringIO()
    app.PDBFile.writeFile(molecule.topology, molecule.positions, text, keepIds=True)
    write_bytes(folder / "structure.pdb", text.getvalue().encode())
    write_bytes(folder / "system.xml", openmm.XmlSerializer.serialize(molecule.system).encode())
