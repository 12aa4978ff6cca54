"""Dialanine with the paper's network and pre-training, and as many of its 100,000 iterations as are asked for.

    boltzgen reproduce dialanine --out FOLDER
    python benchmarks/paper_sizes.py --out FOLDER [--iterations 6000] [--seeds 0 1 2] [--only NAME]

Reference, data, and the network for hydrogens are those of the scale "quick", from its checkpoints in the same folder;
what L2+ should converge to, the share with hydrogens at their minimum, is sampled seven times as long. Writes
FOLDER/dialanine-sizes.json, .md and .png; Ctrl-C, then the same command goes on. With --only one refinement alone is
brought to its end: several can run side by side once the first has done the pre-training.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from boltzgen.interrupts import RunInterrupted
from boltzgen.output_files import write_bytes
from boltzgen.reproduce.dialanine import CURVES, DIALANINE, SETTINGS, run
from boltzgen.reproduce.heavy_atoms import prepare
from boltzgen.reproduce.molecule_curves import checkpoints_in, refine_all
from boltzgen.reproduce.molecule_settings import MoleculeSettings

SHARED = ("reference", "data", "network")
DASHED_STEPS = 70_000
SCALE = "sizes"


def settings_of(iterations: int) -> MoleculeSettings:
    """Sizes and pre-training of the paper, a sharper target, the rest as in the scale "quick"."""
    quick, paper = SETTINGS["quick"], SETTINGS["paper"]
    return replace(
        quick,
        placed=replace(quick.placed, n_steps=DASHED_STEPS),
        n_rounds=paper.n_rounds,
        n_hidden=paper.n_hidden,
        pretraining_steps=paper.pretraining_steps,
        refinement=replace(quick.refinement, n_steps=iterations, measure_every=max(1, iterations // 40)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=[kind.name for kind in CURVES])
    options = parser.parse_args()
    folder, say = options.out / SCALE, lambda line: print(line, flush=True)
    kept, shared = checkpoints_in(folder, f"dialanine-{SCALE}"), checkpoints_in(options.out, "dialanine-quick")
    for name in SHARED:
        if not shared(name).exists() and not kept(name).exists():
            parser.error(f"there is no {shared(name)}: run `boltzgen reproduce dialanine --out {options.out}` before")
        if not kept(name).exists():
            write_bytes(kept(name), shared(name).read_bytes())
    settings = settings_of(options.iterations)
    if options.only is None:
        report = run(settings, options.seeds, folder, say, scale=SCALE)
        title = "Dialanine with the paper's network: figures 3, 4 and 5"
        replace(report, name="dialanine-sizes", title=title).write(options.out, shlex.join(["python", *sys.argv]))
        return
    heavy = prepare(DIALANINE, settings, kept, say)
    kinds = [kind for kind in CURVES if kind.name == options.only]
    for seed in options.seeds:
        refine_all(heavy, settings, kinds, seed, kept, say)


if __name__ == "__main__":
    try:
        main()
    except RunInterrupted as stop:
        sys.exit(f"{stop}: go on with the same command")
