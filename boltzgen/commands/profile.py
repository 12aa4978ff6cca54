"""``boltzgen profile``: a free-energy profile along one or two variables, as a table or a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from boltzgen.commands.stored import add_json, add_run, print_json, read_ensemble, writable_file

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "compute a free-energy profile along one or two variables from the samples of a run"
EPILOG = """\
examples:
  boltzgen profile RUN phi --out phi.png
  boltzgen profile RUN phi psi --bins 60 --out ramachandran.csv
  boltzgen profile RUN 'distance(ALA2:N, ALA2:O)'

Variables are torsions by name (phi, psi, chi1, phi[2]; degrees), distance(ATOM, ATOM) (nm), rg and others as in
boltzgen.collective_variables.parse_variable. Without --out a profile along one variable is printed.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run(parser)
    add = parser.add_argument
    add("variables", metavar="VARIABLE", nargs="+", help="one or two")
    add("--bins", type=int, metavar="N", help="cells along each variable")
    add("--out", metavar="FILE", help="picture (.png, .pdf, .svg) or table (.csv)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Estimate, then write or print."""
    from boltzgen.errors import SelectionError

    if len(options.variables) > 2:
        raise SelectionError(f"a profile has one or two variables, not {len(options.variables)}")
    path = None if options.out is None else writable_file(options.out, (".png", ".pdf", ".svg", ".csv"))
    found = read_ensemble(options.run).profile(*options.variables, bins=options.bins)
    if path is not None:
        options.started = True
        _write(found, path)
    if options.json:
        columns = ("free_energy", "low", "high", "probability", "n_samples")
        values: dict[str, Any] = {name: getattr(found, name).tolist() for name in columns}
        edges = [edge.tolist() for edge in found.edges]
        print_json({"variables": list(found.names), "units": list(found.units), "edges": edges, **values})
        return
    print(found)
    if path is not None:
        print(f"written to {path}")
    elif len(found.names) == 1:
        print(_table(found, "{:>12.4g}  {:>10.3f} [{:.3f}, {:.3f}] kT"))


def _rows(found: Any) -> list[tuple[float, ...]]:
    import numpy as np

    grids = np.meshgrid(*found.centres, indexing="ij")
    columns = [*grids, found.free_energy, found.low, found.high]
    return [tuple(float(value) for value in row) for row in zip(*(c.ravel() for c in columns), strict=True)]


def _table(found: Any, row: str) -> str:
    return "\n".join(row.format(*values) for values in _rows(found))


def _write(found: Any, path: Path) -> None:
    from boltzgen.output_files import write_bytes

    if path.suffix.lower() == ".csv":
        head = [f"{name} ({unit})" if unit else name for name, unit in zip(found.names, found.units, strict=True)]
        lines = [",".join([*head, "free energy (kT)", "low", "high"])]
        lines += [",".join(f"{value:.9g}" for value in row) for row in _rows(found)]
        write_bytes(path, ("\n".join(lines) + "\n").encode())
        return
    import io

    import matplotlib

    matplotlib.use("Agg")
    axes = found.plot()
    picture = io.BytesIO()
    axes.figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150, bbox_inches="tight")
    write_bytes(path, picture.getvalue())
