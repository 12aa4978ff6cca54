"""The commands but ``run`` and ``reproduce``, a module each. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from typing import Any

from boltzgen.commands import bench, free_energy, profile, reference, report, sample, setup, train, view
from boltzgen.commands.stored import EXIT_CODES

__all__ = ["COMMANDS", "add_commands"]

COMMANDS = {
    "setup": setup,
    "train": train,
    "sample": sample,
    "free-energy": free_energy,
    "profile": profile,
    "view": view,
    "reference": reference,
    "report": report,
    "bench": bench,
}


def add_commands(commands: Any) -> None:
    """Declare them.

    Parameters
    ----------
    commands
        What ``add_subparsers`` gives.
    """
    for name, module in COMMANDS.items():
        parser = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=f"{module.EPILOG}\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(parser)
