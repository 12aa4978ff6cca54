"""A molecule with the paper's network and pre-training, and as many of its 100,000 iterations as are asked for.

    boltzgen reproduce dialanine --out FOLDER
    python benchmarks/paper_sizes.py dialanine --out FOLDER [--iterations 6000] [--seeds 0 1 2] [--only NAME]

or butane. Reference, data, and the network for hydrogens are those of the scale "quick", from its checkpoints in the
same folder; what L2+ should converge to, the shares with hydrogens at their minimum, is sampled seven times as long.
Writes FOLDER/dialanine-sizes.json, .md and .png; Ctrl-C, then the same command goes on. With --only one refinement
alone is brought to its end: several can run side by side once the first has done the pre-training.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from boltzgen.interrupts import RunInterrupted
from boltzgen.output_files import write_bytes
from boltzgen.reproduce import butane, dialanine
from boltzgen.reproduce.heavy_atoms import prepare
from boltzgen.reproduce.molecule_curves import checkpoints_in, refine_all
from boltzgen.reproduce.molecule_settings import MoleculeSettings

SHARED = ("reference", "data", "network")
LONGER = 7  # times the sampling of the target
SCALE = "sizes"
EXPERIMENTS = {"butane": (butane, butane.BUTANE), "dialanine": (dialanine, dialanine.DIALANINE)}


def settings_of(quick: MoleculeSettings, paper: MoleculeSettings, iterations: int) -> MoleculeSettings:
    """Sizes and pre-training of the paper, a sharper target, the rest as in the scale "quick"."""
    return replace(
        quick,
        placed=replace(quick.placed, n_steps=LONGER * quick.placed.n_steps),
        n_rounds=paper.n_rounds,
        n_hidden=paper.n_hidden,
        pretraining_steps=paper.pretraining_steps,
        refinement=replace(quick.refinement, n_steps=iterations, measure_every=max(1, iterations // 40)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecule", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", metavar="NAME", help="of a refinement")
    options = parser.parse_args()
    name = options.molecule
    module, case = EXPERIMENTS[name]
    kinds = [kind for kind in module.CURVES if kind.name == options.only]
    if options.only is not None and not kinds:
        parser.error(f"--only {options.only}: give one of {', '.join(kind.name for kind in module.CURVES)}")
    folder, say = options.out / SCALE, lambda line: print(line, flush=True)
    kept, shared = checkpoints_in(folder, f"{name}-{SCALE}"), checkpoints_in(options.out, f"{name}-quick")
    for part in SHARED:
        if not shared(part).exists() and not kept(part).exists():
            parser.error(f"there is no {shared(part)}: run `boltzgen reproduce {name} --out {options.out}` before")
        if not kept(part).exists():
            write_bytes(kept(part), shared(part).read_bytes())
    settings = settings_of(module.SETTINGS["quick"], module.SETTINGS["paper"], options.iterations)
    if options.only is None:
        report = module.run(settings, options.seeds, folder, say, scale=SCALE)
        title = f"{report.title}, the paper's network"
        replace(report, name=f"{name}-sizes", title=title).write(options.out, shlex.join(["python", *sys.argv]))
        return
    heavy = prepare(case, settings, kept, say)
    for seed in options.seeds:
        refine_all(heavy, settings, kinds, seed, kept, say)


if __name__ == "__main__":
    try:
        main()
    except RunInterrupted as stop:
        sys.exit(f"{stop}: go on with the same command")
