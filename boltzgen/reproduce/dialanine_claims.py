"""What the paper says of dialanine, and the rules by which it counts as found again."""

from __future__ import annotations

import math

from boltzgen.reproduce.claims import Claim, Figures

__all__ = ["CLAIMS"]

LOST = 0.1  # of the expected share: what a mode that is "lost" falls below
KEPT = 0.5  # of the expected share: what a mode that is "kept" stays above
CONVERGED = 0.25  # of the expected share; the standard error of 1 % from 2,000 samples is 0.2 of it
RESOLVED = 2.0  # standard errors of the expected share that a rule must not depend on
HALF = 0.5  # of the Boltzmann share: what a mode that hydrogens at their minimum suppress falls below
UNSTABLE = 10.0  # kT of the last decile of U above the start, at any point
ENOUGH = 100.0  # effective samples that an estimate needs


def _rise(figures: Figures, name: str) -> float:
    return figures[f"{name}.highest"] - figures["start.energy_90"]


def _positive(value: float, error: float, resolved: float = RESOLVED) -> bool | None:
    """Whether a value is above zero; None if so many errors do not tell."""
    return None if abs(value) <= resolved * error else value > 0


CLAIMS = (
    Claim(
        key="bias of the hydrogens",
        where="section 4, fig. 3b",
        paper="hydrogens at their minimum lower the share of the minor mode, from 6 % to 1.21 %",
        rule="dashed below half of solid; not decided within three standard errors",
        holds=lambda f: _positive(
            HALF * f["solid"] - f["dashed"], math.hypot(HALF * f["solid.error"], f["dashed.error"]), resolved=3.0
        ),
        shown={
            "solid": "solid",
            "solid.error": "its standard error",
            "dashed": "dashed",
            "dashed.error": "its standard error ",
        },
        unit="% in the minor mode",
    ),
    Claim(
        key="equation 32",
        where="appendix E, eq. 32",
        paper="the expected share follows from weights exp(beta [U(x) - U(h(x))]) of the data",
        rule="these weights leave at least 100 effective samples, and their share agrees with that sampled from "
        "U(h(x_C)) within three standard errors",
        holds=lambda f: (
            f["eq32.effective"] >= ENOUGH
            and abs(f["eq32"] - f["unpenalised"]) <= 3 * (f["eq32.error"] ** 2 + f["unpenalised.error"] ** 2) ** 0.5
        ),
        shown={
            "eq32.effective": "effective samples",
            "eq32": "share by eq. 32",
            "eq32.error": "its apparent error",
            "unpenalised": "sampled",
            "unpenalised.error": "its standard error",
        },
        unit="%",
    ),
    Claim(
        key="KL_x collapses",
        where="appendix C, fig. 4a, c",
        paper="KL_x leads to mode collapse",
        rule="minor mode at the start above a tenth of its dashed share, and in the last quarter below",
        holds=lambda f: f["kl-x.minor"] < LOST * f["dashed"] < f["start.minor"],
        shown={"start.minor": "start", "kl-x.minor": "end", "dashed": "dashed"},
        unit="% in the minor mode",
    ),
    Claim(
        key="KL_z data-free loses the mode",
        where="section 4, fig. 3b, c, f",
        paper="data-free KL_z completely loses the minor mode",
        rule="minor mode at the start above a tenth of its dashed share, and in the last quarter below",
        holds=lambda f: f["kl-z-df.minor"] < LOST * f["dashed"] < f["start.minor"],
        shown={"start.minor": "start", "kl-z-df.minor": "end", "dashed": "dashed"},
        unit="% in the minor mode",
    ),
    Claim(
        key="KL_z data-free is unstable",
        where="section 4, fig. 3i",
        paper="data-free KL_z has unstable energies during fine-tuning",
        rule="last decile of U at some point more than 10 kT above that at the start",
        holds=lambda f: _rise(f, "kl-z-df") > UNSTABLE,
        shown={"start.energy_90": "start", "kl-z-df.highest": "highest"},
        unit="kT",
    ),
    Claim(
        key="L2+ keeps the mode",
        where="section 4, fig. 3b, c, g",
        paper="L2+ does not lose the minor mode",
        rule="minor mode in the last quarter above half of its dashed share; not decided within two standard errors",
        holds=lambda f: _positive(f["l2+.minor"] - KEPT * f["dashed"], KEPT * f["dashed.error"]),
        shown={"start.minor": "start", "l2+.minor": "end", "dashed": "dashed", "dashed.error": "its standard error"},
        unit="% in the minor mode",
    ),
    Claim(
        key="L2+ converges",
        where="section 4, fig. 3b",
        paper="and converges to the ratio expected with hydrogens at their minimum",
        rule="minor mode in the last quarter within a quarter of its dashed share; not decided within two standard "
        "errors",
        holds=lambda f: _positive(
            CONVERGED * f["dashed"] - abs(f["l2+.minor"] - f["dashed"]),
            (1 + CONVERGED) * f["dashed.error"],
        ),
        shown={"start.minor": "start", "l2+.minor": "end", "dashed": "dashed", "dashed.error": "its standard error"},
        unit="% in the minor mode",
    ),
    Claim(
        key="L2+ is stable",
        where="section 4, fig. 3i",
        paper="the energies under L2+ are stable",
        rule="last decile of U nowhere more than 10 kT above that at the start",
        holds=lambda f: _rise(f, "l2+") <= UNSTABLE,
        shown={"start.energy_90": "start", "l2+.highest": "highest"},
        unit="kT",
    ),
    Claim(
        key="L2+ without detach is unstable",
        where="appendix H, fig. 5a",
        paper="when K is not detached, the energy is highly unstable",
        rule="last decile of U at some point more than 10 kT above that at the start",
        holds=lambda f: _rise(f, "l2+attached") > UNSTABLE,
        shown={"start.energy_90": "start", "l2+attached.highest": "highest"},
        unit="kT",
    ),
    Claim(
        key="L2+ without mask is unstable",
        where="appendix H",
        paper="very similar results are obtained when the mask is omitted",
        rule="last decile of U at some point more than 10 kT above that at the start",
        holds=lambda f: _rise(f, "log-variance") > UNSTABLE,
        shown={"start.energy_90": "start", "log-variance.highest": "highest"},
        unit="kT",
    ),
)
