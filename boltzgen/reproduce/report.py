"""What an experiment leaves: a table "paper / here", what was chosen, curves and a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from boltzgen.output_files import write_bytes, write_json
from boltzgen.reproduce.claims import Finding, findings_table, markdown_table
from boltzgen.run.manifest import now, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Choice", "Report"]

PAPER = "Felardos, Hénin, Charpiat (2022), Designing losses for data-free training of normalizing flows"


@dataclass(frozen=True)
class Choice:
    """Something that the paper leaves open, or that is done otherwise here.

    Attributes
    ----------
    what, paper, here : str
    """

    what: str
    paper: str
    here: str


@dataclass(frozen=True)
class Report:
    """The result of an experiment.

    Attributes
    ----------
    name, title, scale : str
    seeds : tuple of int
    findings : list of Finding
    choices : list of Choice
    settings : dict
        Every number that the experiment was run with.
    values : dict
        Curves and figures, for JSON.
    draw : callable
        Makes the picture.
    notes : list of str
        Under the table.
    tables : {title: Markdown}
        Further ones.
    """

    name: str
    title: str
    scale: str
    seeds: tuple[int, ...]
    findings: list[Finding]
    choices: list[Choice]
    settings: dict[str, Any]
    values: dict[str, Any]
    draw: Callable[[], Figure]
    notes: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)

    def figure(self) -> Figure:
        """The picture, in the paper's layout where it has one."""
        return self.draw()

    def as_dict(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {
            "experiment": self.name,
            "paper": PAPER,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "settings": self.settings,
            "choices": [{"what": c.what, "paper": c.paper, "here": c.here} for c in self.choices],
            "findings": [finding.as_dict() for finding in self.findings],
            "notes": self.notes,
            **self.values,
        }

    def markdown(self, source: Mapping[str, Any] | None = None) -> str:
        """The same to read: findings, further tables, choices."""
        lines = [f"# {self.title}", ""]
        if source is not None:
            kept = ", ".join(f"{name} {source['versions'][name]}" for name in ("boltzgen", "torch", "python"))
            made = f"{source['date']}, {kept}, {source['threads']} thread(s), seeds {', '.join(map(str, self.seeds))}"
            lines += [f"`{source['command']}`  ", made, ""]
        lines += [f"Paper: {PAPER}. Scale: {self.scale}.", "", findings_table(self.findings), ""]
        lines += [f"- {note}" for note in self.notes] + ([""] if self.notes else [])
        for title, table in self.tables.items():
            lines += [f"## {title}", "", table, ""]
        rows = [(choice.what, choice.paper, choice.here) for choice in self.choices]
        lines += ["## What the paper leaves open, and what was chosen", ""]
        lines += [markdown_table(("", "paper", "here"), rows), ""]
        return "\n".join(lines)

    def write(self, folder: Path, command: str = "") -> list[Path]:
        """Write ``NAME.json``, ``NAME.md`` and ``NAME.png``, each whole or not at all.

        Parameters
        ----------
        folder : Path
        command : str
            What was called, for the record.

        Raises
        ------
        OutputError
        """
        import matplotlib.pyplot as plt

        source = {
            "command": command or f"boltzgen.reproduce.reproduce({self.name!r})",
            "date": now(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        picture = io.BytesIO()
        figure = self.figure()
        figure.savefig(picture, format="png", dpi=150)
        plt.close(figure)
        return [
            write_json(folder / f"{self.name}.json", source | self.as_dict()),
            write_bytes(folder / f"{self.name}.md", self.markdown(source).encode()),
            write_bytes(folder / f"{self.name}.png", picture.getvalue()),
        ]

    def __repr__(self) -> str:
        lines = [f"<{self.title}: {self.scale}, seeds {', '.join(map(str, self.seeds))}>"]
        for finding in self.findings:
            lines.append(
                f"{finding.summary:<32} {finding.claim.where}: {finding.claim.paper}\n{'':<33}{finding.here()}"
            )
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return self.markdown()
