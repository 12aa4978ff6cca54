"""What the paper says of butane, and the rules by which it counts as found again.

That hydrogens at their minimum change the ratio of the modes is looked at in `boltzgen.reproduce.hydrogens`: the errors
of sampling are larger than the change.
"""

from __future__ import annotations

from boltzgen.reproduce.claims import Claim

__all__ = ["CLAIMS"]

LOST = 0.1  # of the expected share: what modes that are "lost" fall below
KEPT = 0.5  # of the expected share of either: what modes that are "kept" stay above
CONVERGED = 0.1  # of the expected share
SPREAD = 2.0  # times the spread at the start
EXPLODED = 10.0  # kT of U_G above the start
LOW = 10.0  # kT above the last decile of the start

CLAIMS = (
    Claim(
        key="gauche by symmetry",
        where="mirror symmetry (not said in the paper)",
        paper="gauche+ and gauche- have equal populations",
        rule="in both references they differ by less than three standard errors of the difference",
        holds=lambda f: all(f[f"{name}.asymmetry"] < 3 * f[f"{name}.asymmetry_error"] for name in ("solid", "dashed")),
        shown={
            "solid.asymmetry": "solid",
            "solid.asymmetry_error": "its standard error",
            "dashed.asymmetry": "dashed",
            "dashed.asymmetry_error": "its standard error ",
        },
        unit="% between them",
    ),
    Claim(
        key="KL_x expands",
        where="section 2, fig. 2c",
        paper="KL_x makes the density expand translationally",
        rule="spread of the centres in the last quarter more than twice that at the start",
        holds=lambda f: f["kl-x.spread"] > SPREAD * f["start.spread"],
        shown={"start.spread": "start", "kl-x.spread": "end"},
        unit="nm",
    ),
    Claim(
        key="KL_x loses the minor modes",
        where="section 2, fig. 2b, d",
        paper="at the expense of losing the minor modes",
        rule="both gauche modes together, in the last quarter, below a tenth of their dashed share",
        holds=lambda f: f["kl-x.gauche"] < LOST * f["dashed"],
        shown={"start.gauche": "start", "kl-x.gauche": "end", "dashed": "dashed"},
        unit="% gauche",
    ),
    Claim(
        key="explosion of U_G",
        where="section 2, fig. 2e",
        paper="resulting in an explosion of the energy of generation U_G of the data",
        rule="mean -log q over data, in the last quarter of KL_x, more than 10 above that at the start",
        holds=lambda f: f["kl-x.surprise"] > f["start.surprise"] + EXPLODED,
        shown={"start.surprise": "start", "kl-x.surprise": "end"},
        unit="kT",
    ),
    Claim(
        key="KL_z data-free does not explore",
        where="section 2, fig. 2g",
        paper="data-free KL_z does not explore significantly",
        rule="spread of the centres in the last quarter at most twice that at the start",
        holds=lambda f: f["kl-z-df.spread"] <= SPREAD * f["start.spread"],
        shown={"start.spread": "start", "kl-z-df.spread": "end"},
        unit="nm",
    ),
    Claim(
        key="KL_z data-free keeps the modes",
        where="section 2, fig. 2b, i",
        paper="but remains very stable by keeping all the modes",
        rule="each gauche mode, in the last quarter, above half of half the dashed share of both",
        holds=lambda f: min(f["kl-z-df.gauche+"], f["kl-z-df.gauche-"]) > KEPT * f["dashed"] / 2,
        shown={"kl-z-df.gauche+": "gauche+", "kl-z-df.gauche-": "gauche-", "dashed": "both, dashed"},
        unit="%",
    ),
    Claim(
        key="KL_z data-free stays low",
        where="section 2, fig. 2h, j",
        paper="and producing samples that stay at low energy levels",
        rule="last decile of U in the last quarter less than 10 kT above that at the start",
        holds=lambda f: f["kl-z-df.energy_90"] < f["start.energy_90"] + LOW,
        shown={"start.energy_90": "start", "kl-z-df.energy_90": "end"},
        unit="kT",
    ),
    Claim(
        key="KL_z data-free does not converge",
        where="section 2, fig. 2b",
        paper="data-free KL_z does not converge to the expected (dashed) ratio",
        rule="both gauche modes together, in the last quarter, off by more than a tenth of their dashed share",
        holds=lambda f: abs(f["kl-z-df.gauche"] - f["dashed"]) > CONVERGED * f["dashed"],
        shown={"start.gauche": "start", "kl-z-df.gauche": "end", "dashed": "dashed"},
        unit="% gauche",
    ),
    Claim(
        key="L2+ keeps the modes",
        where="section 4 (shown there for dialanine)",
        paper="L2+ refines without data and keeps the minor modes",
        rule="each gauche mode, in the last quarter, above half of half the dashed share of both",
        holds=lambda f: min(f["l2+.gauche+"], f["l2+.gauche-"]) > KEPT * f["dashed"] / 2,
        shown={"l2+.gauche+": "gauche+", "l2+.gauche-": "gauche-", "dashed": "both, dashed"},
        unit="%",
    ),
)
