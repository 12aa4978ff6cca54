"""Butane with the alignment penalty kept in the refinements: what of figure 2 is due to a target without bounds.

    boltzgen reproduce butane --out FOLDER
    python benchmarks/paper_penalty.py --out FOLDER [--seeds 0 1 2]

The scale "quick" and its reference, data and network for hydrogens, from its checkpoints in the same folder. Writes
FOLDER/butane-penalty.json, .md and .png; Ctrl-C, then the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from paper_sizes import DATA, say, share_checkpoints

from boltzgen.interrupts import RunInterrupted
from boltzgen.reproduce import butane

SCALE = "penalty"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    parts = (*DATA, "network", "minimized", "hydrogens")
    share_checkpoints(options.out, "butane", parts, options.out / SCALE, SCALE)
    quick = butane.SETTINGS["quick"]
    settings = replace(quick, refinement_strength=quick.pretraining_strength)
    report = butane.run(settings, options.seeds, options.out / SCALE, say, scale=SCALE)
    title = f"{report.title}, with the penalty"
    replace(report, name="butane-penalty", title=title).write(options.out, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    try:
        main()
    except RunInterrupted as stop:
        sys.exit(f"{stop}: go on with the same command")
