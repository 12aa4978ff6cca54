"""What the paper says as data, and whether it was found again: decided by a stated rule, from figures of every seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "NOT_DECIDED",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "Claim",
    "Figures",
    "Finding",
    "examine",
    "findings_table",
    "markdown_table",
]

REPRODUCED, NOT_REPRODUCED, NOT_DECIDED = "reproduced", "not reproduced", "not decided"

Figures = Mapping[str, float]
"""The figures of one seed by name; NaN where a training failed."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that figures can contradict.

    Attributes
    ----------
    key : str
    where : str
        Section, figure or equation of Felardos, Hénin, Charpiat (2022).
    paper : str
        What it says there.
    rule : str
        When it counts as found again, in words.
    holds : callable
        The rule: takes the figures of one seed. None where they do not decide it.
    shown : {figure: label}
        The figures that the rule looks at.
    unit : str
        Of these.
    """

    key: str
    where: str
    paper: str
    rule: str
    holds: Callable[[Figures], bool | None]
    shown: Mapping[str, str]
    unit: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim beside what was found.

    Attributes
    ----------
    claim : Claim
    figures : {seed: figures}
        Those that the rule looks at.
    held : {seed: bool or None}
        None where a figure is missing, because a training failed, or errors are too large to decide.
    """

    claim: Claim
    figures: Mapping[int, Figures]
    held: Mapping[int, bool | None]

    @property
    def verdict(self) -> str:
        """Reproduced if the claim held in every seed; not decided if it failed in none but one leaves it open."""
        if any(held is False for held in self.held.values()):
            return NOT_REPRODUCED
        return REPRODUCED if self.held and all(self.held.values()) else NOT_DECIDED

    @property
    def summary(self) -> str:
        """Verdict and in how many seeds the claim held."""
        return f"{self.verdict} ({sum(held is True for held in self.held.values())} of {len(self.held)} seeds)"

    def here(self) -> str:
        """The figures of all seeds in one line."""
        parts = []
        for key, label in self.claim.shown.items():
            values = ", ".join(_number(figures[key]) for figures in self.figures.values())
            parts.append(f"{label}: {values}")
        return "; ".join(parts) + (f" {self.claim.unit}" if self.claim.unit else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "key": self.claim.key,
            "where": self.claim.where,
            "paper": self.claim.paper,
            "rule": self.claim.rule,
            "unit": self.claim.unit,
            "labels": dict(self.claim.shown),
            "seeds": {
                str(seed): {"held": self.held[seed], "figures": dict(figures)} for seed, figures in self.figures.items()
            },
            "verdict": self.verdict,
        }


def examine(claims: Sequence[Claim], figures: Mapping[int, Figures]) -> list[Finding]:
    """Every claim by its rule, on the figures of every seed.

    Parameters
    ----------
    claims : sequence of Claim
    figures : {seed: figures}

    Raises
    ------
    KeyError
        If a seed lacks a figure that a claim looks at; one that could not be had is NaN.
    """
    findings = []
    for claim in claims:
        looked_at = {seed: {key: float(values[key]) for key in claim.shown} for seed, values in figures.items()}
        held = {seed: _judge(claim, values) for seed, values in looked_at.items()}
        findings.append(Finding(claim, looked_at, held))
    return findings


def findings_table(findings: Sequence[Finding]) -> str:
    """The table "paper / here" in Markdown."""
    rows = [
        (f.claim.where, f.claim.paper, f.here(), f.claim.rule, f"**{f.verdict}**{f.summary.removeprefix(f.verdict)}")
        for f in findings
    ]
    head = ("where", "paper", "here, by seed", "counts as reproduced if, in every seed", "verdict")
    return markdown_table(head, rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts, in which KL(p || q) does not end a cell."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _judge(claim: Claim, figures: Figures) -> bool | None:
    # A comparison with NaN is false: without this a claim that something falls short would look contradicted.
    if not all(math.isfinite(value) for value in figures.values()):
        return None
    held = claim.holds(figures)
    return None if held is None else bool(held)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "failed"
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.1e}"
