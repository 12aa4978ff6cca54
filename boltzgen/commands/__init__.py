"""Commands on what a run left: more samples, free energies, profiles and frames. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from typing import Any

from boltzgen.commands import free_energy, profile, sample, view

__all__ = ["COMMANDS", "add_commands"]

COMMANDS = {"sample": sample, "free-energy": free_energy, "profile": profile, "view": view}


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
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(parser)
