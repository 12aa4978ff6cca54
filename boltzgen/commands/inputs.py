"""Options that commands share: the molecule, and its training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from boltzgen.commands.stored import finite_number, seed_number

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["add_molecule", "add_training", "read_molecule", "run_values"]

NO_OPTIONS = ("command", "basin", "variant", "json")  # of `RunOptions`, by these names


def add_molecule(parser: argparse.ArgumentParser, what: str) -> None:
    """The options that say what molecule, with which force field.

    Values that are not given are absent, for defaults are those of `RunOptions`, under a recipe where there is one.

    Parameters
    ----------
    what : str
        Help for the file.
    """
    absent, add = argparse.SUPPRESS, parser.add_argument
    add("pdb", metavar="PDB", help=what)
    add("--forcefield", metavar="NAME", default=absent, help="force field, or an OpenMM XML file (default: charmm36m)")
    add("--solvent", metavar="NAME", default=absent, help="none, hct, obc1, obc2, gbn or gbn2 (default: none)")
    add("--temperature", type=finite_number, metavar="K", default=absent, help="in kelvin (default: 300)")
    add(
        "--ph",
        type=finite_number,
        metavar="PH",
        default=absent,
        help="for protonation states that the file leaves open (default: 7)",
    )
    add(
        "--variant",
        action="append",
        metavar="RES=STATE",
        default=absent,
        help="protonation state, e.g. HIS5=HIE; may be repeated",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options of a training; absent where not given, see `add_molecule`."""
    absent, add = argparse.SUPPRESS, parser.add_argument
    add(
        "--budget",
        metavar="B",
        default=absent,
        help="quick, standard, thorough, or a number of energy evaluations (default: standard)",
    )
    add(
        "--basin",
        action="append",
        metavar="'NAME: EXPR'",
        default=absent,
        help="basin for a free energy; may be repeated",
    )
    add("--device", metavar="D", default=absent, help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--seed", type=seed_number, metavar="N", default=absent, help="of every random number (default: 0)")
    add(
        "--out",
        metavar="DIR",
        default=absent,
        help="folder for the files, new or empty (default: PDB-FORCEFIELD-seedN)",
    )
    add("--resume", action="store_true", default=absent, help="go on from the checkpoint in the output folder")
    add(
        "--omega",
        choices=("trans", "free"),
        default=absent,
        help="amide torsions stay as in the file, or turn freely",
    )
    add(
        "--coordinates",
        choices=("internal", "cartesian"),
        default=absent,
        help="of the heavy atoms; cartesian starts in one basin and is not to be used without --reference",
    )
    add(
        "--hydrogens",
        choices=("flow", "network", "minimized"),
        default=absent,
        help="drawn with exact density, or placed at their energy minimum h(x_C): the target is then "
        "exp(-U(h(x_C))/kT) on the heavy atoms x_C alone, not the Boltzmann distribution of the molecule",
    )


def read_molecule(arguments: argparse.Namespace) -> Molecule:
    """The molecule that the options of `add_molecule` name.

    Raises
    ------
    BoltzgenError
        If it cannot be read or set up.
    """
    from boltzgen.run import RunOptions
    from boltzgen.run.pipeline import read_molecule as read

    names = ("pdb", "forcefield", "solvent", "temperature", "ph", "variant")
    given = argparse.Namespace(**{name: value for name, value in vars(arguments).items() if name in names})
    values = run_values(given)
    return read(RunOptions(**values))


def run_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `RunOptions`: those of a recipe, where one is given, under those of the command line."""
    from boltzgen.collective_variables import parse_named_basins
    from boltzgen.run.recipes import read_recipe

    given = {name: value for name, value in vars(arguments).items() if name not in NO_OPTIONS}
    if str(arguments.pdb).lower().endswith(".toml"):
        given = read_recipe(arguments.pdb) | {name: value for name, value in given.items() if name != "pdb"}
    if "basin" in arguments:
        given["basins"] = parse_named_basins(arguments.basin)
    if "variant" in arguments:
        given["variants"] = _variants(arguments.variant)
    if "solvent" in given:
        given["solvent"] = given["solvent"].lower()
    return given


def _variants(texts: list[str]) -> dict[str, str]:
    from boltzgen.errors import StructureError

    found = {}
    for text in texts:
        residue, equals, state = (part.strip() for part in text.partition("="))
        if not (residue and equals and state):
            raise StructureError(f"cannot read --variant {text!r}: write RES=STATE, e.g. HIS5=HIE")
        found[residue] = state
    return found
