"""Dialanine with the paper's network and pre-training, and as many of its 100,000 iterations as are asked for.

    boltzgen reproduce dialanine --out FOLDER
    python benchmarks/paper_sizes.py --out FOLDER [--iterations 6000] [--seeds 0] [--only NAME]
    python benchmarks/paper_sizes.py --out FOLDER --dashed 70000

Reference, data, and the network for hydrogens are those of the scale "quick", from its checkpoints in the same folder.
Writes FOLDER/dialanine-sizes.json, .md and .png; Ctrl-C, then the same command goes on. With --only one refinement
alone is brought to its end: several can run side by side once the first has done the pre-training. With --dashed
the target of the refinements alone, the share with hydrogens at their minimum, is sampled for so many steps instead of
10,000, and written to FOLDER/dialanine-dashed.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from boltzgen.interrupts import RunInterrupted
from boltzgen.output_files import write_bytes, write_json
from boltzgen.reproduce.dialanine import CURVES, DIALANINE, SETTINGS, run
from boltzgen.reproduce.heavy_atoms import prepare
from boltzgen.reproduce.molecule_curves import checkpoints_in, refine_all
from boltzgen.reproduce.molecule_settings import MoleculeSettings
from boltzgen.run.manifest import now, versions

SHARED = ("reference", "data", "network", "minimized")
SCALE = "sizes"


def settings_of(iterations: int) -> MoleculeSettings:
    """Sizes and pre-training of the paper, the rest as in the scale "quick"."""
    quick, paper = SETTINGS["quick"], SETTINGS["paper"]
    return replace(
        quick,
        n_rounds=paper.n_rounds,
        n_hidden=paper.n_hidden,
        pretraining_steps=paper.pretraining_steps,
        refinement=replace(quick.refinement, n_steps=iterations, measure_every=max(1, iterations // 40)),
    )


def dashed(settings: MoleculeSettings, n_steps: int, kept: Callable[[str], Path | None]) -> dict[str, Any]:
    """Shares of the modes with hydrogens at their minimum, with the penalty's factor and without."""
    longer = replace(settings, placed=replace(settings.placed, n_steps=n_steps))
    where = lambda name: kept(f"{name}-{n_steps}" if name == "minimized" else name)
    heavy = prepare(DIALANINE, longer, where, print)
    shares = {
        "with the penalty": heavy.shares(heavy.minimized, settings.refinement_strength),
        "without": heavy.shares(heavy.minimized),
    }
    for target, by_mode in shares.items():
        print(target, ", ".join(f"{mode}: {share}" for mode, share in by_mode.items()))
    return {
        "date": now(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "sampling": asdict(longer.placed),
        "frames": len(heavy.minimized.energies),
        "effective": heavy.minimized.effective,
        "evaluations": heavy.minimized.evaluations,
        "seconds": heavy.minimized.seconds,
        "percent": {target: {mode: asdict(s) for mode, s in by_mode.items()} for target, by_mode in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=[kind.name for kind in CURVES])
    parser.add_argument("--dashed", type=int, metavar="STEPS")
    options = parser.parse_args()
    folder, say = options.out / SCALE, lambda line: print(line, flush=True)
    kept, shared = checkpoints_in(folder, f"dialanine-{SCALE}"), checkpoints_in(options.out, "dialanine-quick")
    for name in SHARED:
        if not shared(name).exists() and not kept(name).exists():
            parser.error(f"there is no {shared(name)}: run `boltzgen reproduce dialanine --out {options.out}` before")
        if not kept(name).exists():
            write_bytes(kept(name), shared(name).read_bytes())
    settings = settings_of(options.iterations)
    command = shlex.join(["python", *sys.argv])
    if options.dashed is not None:
        write_json(
            options.out / "dialanine-dashed.json", {"command": command, **dashed(settings, options.dashed, kept)}
        )
        return
    if options.only is None:
        report = run(settings, options.seeds, folder, say, scale=SCALE)
        title = "Dialanine with the paper's network: figures 3, 4 and 5"
        replace(report, name="dialanine-sizes", title=title).write(options.out, command)
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
