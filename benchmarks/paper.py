"""Join what `boltzgen reproduce` wrote for each experiment of the paper into one file, without the curves.

    boltzgen reproduce NAME --out benchmarks/results/paper
    python benchmarks/paper_sizes.py NAME --out benchmarks/results/paper
    python benchmarks/paper_penalty.py --out benchmarks/results/paper
    python benchmarks/paper.py

Writes benchmarks/results/paper.json: for every experiment its command, settings, choices and findings, and the figures
of every seed. The curves are in benchmarks/results/paper/NAME.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzgen.output_files import write_json
from boltzgen.reproduce import EXPERIMENTS

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = (*EXPERIMENTS, "double-well-sizes", "butane-sizes", "dialanine-sizes", "beyond-sizes")
CONTROLS = ("butane-penalty",)  # whose verdicts do not count: they say what a claim depends on


def joined(folder: Path) -> dict[str, Any]:
    """All experiments by name whose JSON is in a folder, and how many claims have which verdict."""
    found, controls = _contents(folder, NAMES), _contents(folder, CONTROLS)
    verdicts: dict[str, int] = {}
    for experiment in found.values():
        for finding in experiment.get("findings", []):
            verdicts[finding["verdict"]] = verdicts.get(finding["verdict"], 0) + 1
    return {"verdicts": verdicts, "experiments": found, "controls": controls}


def _contents(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in content.items() if key != "curves"}
    return found


def main() -> None:
    content = joined(RESULTS / "paper")
    path = write_json(RESULTS / "paper.json", content)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in content["verdicts"].items())
    print(f"{path.relative_to(RESULTS.parents[1])}: {', '.join(content['experiments'])}; claims: {counts}")


if __name__ == "__main__":
    main()
