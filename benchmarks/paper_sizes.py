"""An experiment with the paper's network, and as many of its 100,000 iterations as are asked for.

    boltzgen reproduce dialanine --out FOLDER
    python benchmarks/paper_sizes.py dialanine --out FOLDER [--iterations 6000] [--seeds 0 1 2] [--only NAME]

or butane; or beyond, which has the data of dialanine and takes iterations for internal coordinates too; or double-well,
which needs nothing made before. Reference, data, and the network for hydrogens of the molecules are those of the scale
"quick", from its checkpoints in the same folder; what L2+ should converge to with hydrogens at their minimum is sampled
seven times as long. Writes FOLDER/NAME-sizes.json, .md and .png; Ctrl-C, then the same command goes on. With --only one
refinement alone is brought to its end: several can run side by side once the first has done the pre-training.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from boltzgen.interrupts import RunInterrupted
from boltzgen.output_files import write_bytes
from boltzgen.reproduce import beyond, butane, dialanine, double_well
from boltzgen.reproduce.heavy_atoms import prepare
from boltzgen.reproduce.molecule_curves import checkpoints_in, refine_all
from boltzgen.reproduce.molecule_settings import MoleculeSettings
from boltzgen.reproduce.report import Report

DATA = ("reference", "data")
LONGER = 7  # times the sampling of the target
SCALE = "sizes"
MOLECULES = {"butane": (butane, butane.BUTANE), "dialanine": (dialanine, dialanine.DIALANINE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*MOLECULES, *OTHERS])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000, help="with L2+ or the other losses, by Cartesian flows")
    parser.add_argument("--internal", type=int, help="the same in internal coordinates, of beyond (default: 10,000)")
    parser.add_argument(
        "--pretraining", type=int, default=10_000, help="steps, of the double well those of the complete one"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", metavar="NAME", help="of a refinement of a molecule")
    options = parser.parse_args()
    name, folder = options.experiment, options.out / SCALE
    if options.internal is not None and name != "beyond":
        parser.error(f"{name} has no refinement in internal coordinates for --internal")
    if options.only is not None:
        names = [kind.name for kind in MOLECULES[name][0].CURVES] if name in MOLECULES else []
        if options.only not in names:
            parser.error(
                f"{name} has no {options.only!r} for --only: {', '.join(names) or 'run it seed by seed instead'}"
            )
        only(options, folder)
        return
    report = OTHERS.get(name, of_molecule)(options, folder)
    title = f"{report.title}, the paper's network"
    replace(report, name=f"{name}-sizes", title=title).write(options.out, shlex.join(["python", *sys.argv]))


def of_molecule(options: argparse.Namespace, folder: Path) -> Report:
    """All refinements of butane or dialanine."""
    module, _ = MOLECULES[options.experiment]
    share_checkpoints(options.out, options.experiment, (*DATA, "network"), folder, SCALE)
    return module.run(molecule_settings(options.experiment, options), options.seeds, folder, say, scale=SCALE)


def of_beyond(options: argparse.Namespace, folder: Path) -> Report:
    """Both generators with hydrogens from a flow."""
    share_checkpoints(options.out, "dialanine", DATA, folder, SCALE)
    quick = beyond.SETTINGS["quick"]
    steps = {"internal": 10_000 if options.internal is None else options.internal, "cartesian": options.iterations}
    settings = replace(
        quick,
        molecule=molecule_settings("dialanine", options),
        refinements={kind: beyond.refinement(n, quick.refinements[kind].learning_rate) for kind, n in steps.items()},
    )
    return beyond.run(settings, options.seeds, folder, say, scale=SCALE)


def of_double_well(options: argparse.Namespace, folder: Path) -> Report:
    """All refinements of the double well, after the paper's pre-trainings."""
    paper = double_well.SETTINGS["paper"]
    refinement = replace(paper.refinement, n_steps=options.iterations, measure_every=max(1, options.iterations // 40))
    settings = replace(
        paper,
        complete=replace(paper.complete, n_steps=options.pretraining),
        refinement=refinement,
        n_measured=double_well.SETTINGS["quick"].n_measured,
    )
    return double_well.run(settings, options.seeds, folder, say, scale=SCALE)


OTHERS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {"beyond": of_beyond, "double-well": of_double_well}


def only(options: argparse.Namespace, folder: Path) -> None:
    """One refinement of a molecule to its end, without a report."""
    name = options.experiment
    module, case = MOLECULES[name]
    share_checkpoints(options.out, name, (*DATA, "network"), folder, SCALE)
    settings, kept = molecule_settings(name, options), checkpoints_in(folder, f"{name}-{SCALE}")
    heavy, kinds = prepare(case, settings, kept, say), [kind for kind in module.CURVES if kind.name == options.only]
    for seed in options.seeds:
        refine_all(heavy, settings, kinds, seed, kept, say)


def molecule_settings(name: str, options: argparse.Namespace) -> MoleculeSettings:
    """The network of the paper, a sharper target, the rest as in the scale "quick"."""
    quick, paper = (MOLECULES[name][0].SETTINGS[scale] for scale in ("quick", "paper"))
    iterations = options.iterations
    return replace(
        quick,
        placed=replace(quick.placed, n_steps=LONGER * quick.placed.n_steps),
        n_rounds=paper.n_rounds,
        n_hidden=paper.n_hidden,
        pretraining_steps=options.pretraining,
        refinement=replace(quick.refinement, n_steps=iterations, measure_every=max(1, iterations // 40)),
    )


def share_checkpoints(out: Path, name: str, parts: Sequence[str], folder: Path, scale: str) -> None:
    """Copy those of the scale "quick" to those of another scale and folder, where they are not there yet.

    Raises
    ------
    SystemExit
        If they were not made.
    """
    kept, shared = checkpoints_in(folder, f"{name}-{scale}"), checkpoints_in(out, f"{name}-quick")
    for part in parts:
        if not shared(part).exists() and not kept(part).exists():
            sys.exit(f"there is no {shared(part)}: run `boltzgen reproduce {name} --out {out}` before")
        if not kept(part).exists():
            write_bytes(kept(part), shared(part).read_bytes())


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (RunInterrupted, KeyboardInterrupt) as stop:
        sys.exit(f"{stop or 'interrupted'}: go on with the same command")
