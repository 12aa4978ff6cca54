"""``boltzgen report``: the page about a run, written again from its files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from boltzgen.commands.stored import add_json, add_run, print_json, read_ensemble, writable_file

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "write the HTML report of a run again, or print its answer"
EPILOG = """\
examples:
  boltzgen report RUN --out page.html
  boltzgen report RUN --reference reference --out page.html     (frames of boltzgen reference in every picture)
  boltzgen report RUN --json                                    (the answer, as in result.json)

Nothing is computed anew but the pictures: numbers are those of result.json.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run(parser)
    add = parser.add_argument
    add("--reference", metavar="DIR", help="output folder of boltzgen reference, or any saved ensemble")
    add("--out", metavar="FILE", help="page to write (default: report.html in the folder of the run)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Read, write and print."""
    from boltzgen.ensemble import Ensemble
    from boltzgen.report import write_report
    from boltzgen.run.answer import format_answer
    from boltzgen.run.files import read_history

    folder = Path(options.run)
    if options.json and options.out is None and options.reference is None:
        print_json(_read(folder / "result.json"))
        return
    path = writable_file(options.out or str(folder / "report.html"), (".html",))
    result = _read(folder / "result.json")
    ensemble = read_ensemble(options.run)
    molecule = ensemble.require_molecule()
    reference: Any = None if options.reference is None else Ensemble.load(options.reference, molecule)
    if reference is None:
        from boltzgen.sampling import shipped_reference

        summary = None if ensemble.target else shipped_reference(molecule)
        reference = None if summary is None else summary.ramachandran
    history = read_history(folder / "history.csv", result.get("training_events", []))
    manifest = _read(folder / "manifest.json")
    options.started = True
    write_report(
        path,
        molecule=molecule,
        ensemble=ensemble,
        history=history,
        result=result,
        manifest=manifest,
        reference=reference,
    )
    if options.json:
        print_json({**result, "report": str(path)})
    else:
        print(f"{format_answer(result)}\n{'report':<16}{path}")


def _read(path: Path) -> dict[str, Any]:
    from boltzgen.errors import OutputError
    from boltzgen.output_files import explain_os_error

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {explain_os_error(error)}: is the run finished?") from error
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise OutputError(f"{path} is damaged: it holds no table of values")
    return values
