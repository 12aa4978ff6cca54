"""``boltzgen train``: the training of a run alone. The work is that of ``boltzgen run``; here are its options."""

from __future__ import annotations

import argparse

from boltzgen.commands.inputs import add_molecule, add_training
from boltzgen.commands.stored import add_json

__all__ = ["EPILOG", "HELP", "add_options"]

HELP = "train a generator for a molecule, and write the model without an answer"
EPILOG = """\
examples:
  boltzgen train molecule.pdb --budget quick --out RUN
  boltzgen sample RUN -n 1000000 --out samples
  boltzgen run molecule.pdb --budget quick --out RUN --resume      (goes on to the answer)
  boltzgen train molecule.pdb --budget quick --out RUN --resume    (after Ctrl-C)

The output folder gets model.safetensors, history.csv, manifest.json and checkpoint.pt. Options mean what they mean in
boltzgen run, and a recipe may stand in the place of the PDB file.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_molecule(parser, "structure of one molecule without solvent, PDB or mmCIF; or a recipe, TOML")
    add_training(parser)
    add_json(parser)
