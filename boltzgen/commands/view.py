"""``boltzgen view``: frames of a run as a PDB file for a molecular viewer, or as a picture."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from boltzgen.commands.stored import (
    add_json,
    add_run,
    print_json,
    read_ensemble,
    read_generator,
    seed_number,
    writable_file,
)

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "write frames of a run for a molecular viewer, or a picture of one"
EPILOG = """\
examples:
  boltzgen view RUN --out frames.pdb
  boltzgen view RUN --by '0 < phi < 150' -n 20 --out c7ax.pdb
  boltzgen view RUN --by heaviest -n 10 --out heaviest.pdb
  boltzgen view RUN --hydrogens -n 20 --out hydrogens.pdb      (one configuration, its hydrogens drawn anew)
  boltzgen view RUN --out frame.png --json

Frames are superposed on the heavy atoms. By weight they follow the Boltzmann distribution; one of large weight may come
more than once.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run(parser)
    add = parser.add_argument
    add("-n", type=int, default=50, metavar="N", help="number of frames (default: 50)")
    add(
        "--by",
        default="weight",
        metavar="HOW",
        help="weight, random, heaviest, or a basin expression (default: weight)",
    )
    add("--hydrogens", action="store_true", help="keep the heavy atoms of one frame, and draw its hydrogens anew")
    add("--seed", type=seed_number, default=0, metavar="N", help="of the draw (default: 0)")
    add("--out", default="frames.pdb", metavar="FILE", help="models of a .pdb file, or a .png (default: frames.pdb)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Choose, superpose and write."""
    from boltzgen.errors import SelectionError
    from boltzgen.output_files import write_bytes
    from boltzgen.viewing import chosen_frames, hydrogen_frames, structure_png

    by = options.by or ("heaviest" if options.hydrogens else "weight")
    path = writable_file(options.out, (".pdb", ".png"))
    if options.n < 1:
        raise SelectionError(f"-n {options.n}: at least one frame")
    ensemble = read_ensemble(options.run)
    if options.hydrogens:
        frames = hydrogen_frames(read_generator(options.run), ensemble, options.n, by, seed=options.seed)
    else:
        frames = chosen_frames(ensemble, options.n, by, seed=options.seed)
    options.started = True
    if path.suffix.lower() == ".png":
        frames = frames[0]
        write_bytes(path, structure_png(ensemble.require_molecule(), frames.xyz[0]))
        said = f"a picture of one frame is in {path}"
    else:
        write_bytes(path, _models(frames))
        said = f"{len(frames)} frames are in {path}"
    if options.json:
        print_json({"n_frames": len(frames), "by": by, "hydrogens_drawn_anew": options.hydrogens, "file": str(path)})
    else:
        print(said)


def _models(frames: Any) -> bytes:
    """The frames of a trajectory as the models of a PDB file."""
    with tempfile.TemporaryDirectory() as folder:  # mdtraj writes to names only
        path = Path(folder) / "frames.pdb"
        frames.save_pdb(str(path))
        return path.read_bytes()
