"""What appendix I of the paper says, in a form that figures can contradict."""

from __future__ import annotations

from boltzgen.reproduce.claims import Claim

__all__ = ["CLAIMS"]

CLOSE, FAR = 0.01, 0.1  # in total variation
SAME = 1e-3  # nats; q still departs from sqrt(2 t p) by less at the last time
EXPLODED = 5.0  # nats, a factor of 150

CLAIMS = (
    Claim(
        key="square root",
        where="proposition I.1",
        paper="unconstrained descent on KL(p || q) tends to the square root of p, not to p",
        rule=f"q over its mass within {CLOSE:g} of sqrt(p) in total variation, and more than {FAR:g} from p",
        holds=lambda f: f["tv_root"] < CLOSE and f["tv_target"] > FAR,
        shown={"tv_root": "to sqrt(p)", "tv_target": "to p"},
    ),
    Claim(
        key="mass",
        where="proposition I.1, J.2",
        paper="q is about sqrt(2 t p): its mass grows without bound",
        rule="mass within 2 % of sqrt(2t) times the integral of sqrt(p); numerical and exact q within 1e-4",
        holds=lambda f: abs(f["mass_ratio"] - 1) < 0.02 and f["error"] < 1e-4,
        shown={"mass": "mass", "mass_ratio": "over sqrt(2t) int sqrt(p)", "error": "error of q"},
    ),
    Claim(
        key="below zero",
        where="proposition I.1",
        paper="KL(p || q) falls far below zero: Gibbs' inequality needs unit mass",
        rule="below -1 nat at the last time",
        holds=lambda f: f["kl"] < -1,
        shown={"kl": "KL"},
        unit="nats",
    ),
    Claim(
        key="value of the divergence",
        where="proposition I.1, J.2",
        paper="KL(p || sqrt(2 t p)) = H(p)/2 - log(2t)/2",
        rule=f"within {SAME:g} nats, with H(p) the entropy -integral of p log p",
        holds=lambda f: abs(f["kl"] - f["kl_paper"]) < SAME,
        shown={"kl": "numerical", "kl_paper": "H/2 - log(2t)/2", "kl_minus": "-H/2 - log(2t)/2"},
        unit="nats",
    ),
    Claim(
        key="one minibatch",
        where="corollary I.1",
        paper="with always the same minibatch, a normalised flow follows similar exploding dynamics",
        rule=f"log of the sum of q over it grows by more than {EXPLODED:g}, and more than with KL(p_d || q_d)",
        holds=lambda f: f["fixed_unnormalised"] > EXPLODED and f["fixed_unnormalised"] > f["fixed_normalised"],
        shown={"fixed_unnormalised": "KL(p_d || q)", "fixed_normalised": "KL(p_d || q_d)"},
        unit="nats",
    ),
    Claim(
        key="variance with normalisation",
        where="appendix I.1, J.4",
        paper="without normalisation gradients have a lot of variance, which the correct one removes",
        rule="trace of the covariance of the gradient of KL(p_d || q_d) below that of KL(p_d || q), at either flow",
        holds=lambda f: max(f["partial.normalised"], f["complete.normalised"]) < 1,
        shown={"partial.normalised": "ratio, partial", "complete.normalised": "complete"},
    ),
    Claim(
        key="informative gradients",
        where="appendix I.1",
        paper="with it each minibatch gradient is informative",
        rule="its cosine with the exact gradient of KL(p || q) positive, and larger than without, at either flow",
        holds=lambda f: all(
            f[f"{flow}.cosine_normalised"] > max(f[f"{flow}.cosine"], 0) for flow in ("partial", "complete")
        ),
        shown={
            "partial.cosine_normalised": "partial, with",
            "partial.cosine": "without",
            "complete.cosine_normalised": "complete, with",
            "complete.cosine": "without (complete)",
        },
    ),
    Claim(
        key="K*",
        where="appendix I.2, J.6",
        paper="the constant K* lowers the variance of the gradient of KL(p || q)",
        rule="trace of the covariance with K* below that without, at either flow",
        holds=lambda f: max(f["partial.star"], f["complete.star"]) < 1,
        shown={
            "partial.star": "ratio, partial",
            "complete.star": "complete",
            "partial.one": "with K = 1, partial",
            "complete.one": "complete (K = 1)",
        },
    ),
)
