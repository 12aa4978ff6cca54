"""Appendix I as a picture: the descent of proposition I.1, one minibatch, and the noise of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from boltzgen.plotting.style import BASIN_COLOURS, legend, plain
from boltzgen.reproduce.gradient_variance import Noise
from boltzgen.reproduce.unconstrained import Descent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

TARGET, ROOT = "#E69F00", "#0072B2"
SHADES = ("#BBBBBB", "#888888", "#555555", "#000000")
SHOWN_TIMES = (0.0, 0.1, 10.0)
FLOW_MARKERS = {"partial": "o", "complete": "s"}

Noises = Mapping[int, Mapping[str, Mapping[str, Noise]]]


def draw(descents: Mapping[int, Descent], fixed: Mapping[int, Mapping[str, list[float]]], noises: Noises) -> Figure:
    """Five panels.

    Parameters
    ----------
    descents : {seed: Descent}
    fixed : {seed: {loss: log of the mass of the minibatch}}
    noises : {seed: {flow: {estimator: Noise}}}
    """
    figure, axes = plt.subplot_mosaic("aabbcc;dddeee", figsize=(11.0, 6.4), layout="constrained")
    for name, ax in axes.items():
        plain(ax)
        ax.set_title(f"({name})", loc="left", fontsize="small", fontweight="bold")
    _densities(axes["a"], next(iter(descents.values())))
    _distances(axes["b"], descents)
    _minibatch(axes["c"], fixed)
    _variances(axes["d"], noises)
    _cosines(axes["e"], noises)
    figure.suptitle(f"Felardos et al. (2022), appendix I, {len(descents)} seeds", fontsize="medium")
    return figure


def _densities(ax: Axes, descent: Descent) -> None:
    ax.plot(descent.x, descent.p, color=TARGET, linewidth=2.0, label="p")
    ax.plot(descent.x, descent.root, color=ROOT, linewidth=2.0, label="sqrt(p), normalised")
    times = [time for time in SHOWN_TIMES if time in descent.times] + [descent.times[-1]]
    for time, shade in zip(times, SHADES, strict=False):
        q = descent.normalised[descent.times.index(time)]
        ax.plot(descent.x, q, color=shade, linewidth=0.9, linestyle="--", label=f"q / mass, t = {time:g}")
    ax.set_xlim(-3, 3)
    ax.set_xlabel("x1")
    ax.set_ylabel("density")
    ax.set_title("unconstrained descent", fontsize="small")
    legend(ax, loc="best")


def _distances(ax: Axes, descents: Mapping[int, Descent]) -> None:
    for k, descent in enumerate(descents.values()):
        later = np.array(descent.times) > 0
        times = np.array(descent.times)[later]
        for density, colour, label in ((descent.p, TARGET, "to p"), (descent.root, ROOT, "to sqrt(p), normalised")):
            values = np.array(descent.distance(density))[later]
            ax.plot(times, values, color=colour, linewidth=0.9, marker=".", label=None if k else label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("t")
    ax.set_ylabel("total variation of q / mass")
    ax.set_title("proposition I.1", fontsize="small")
    legend(ax, loc="best")


def _minibatch(ax: Axes, fixed: Mapping[int, Mapping[str, list[float]]]) -> None:
    labels = {"unnormalised": ("KL(p_d || q)", BASIN_COLOURS[1], "-"), "normalised": ("KL(p_d || q_d)", ROOT, "--")}
    for k, curves in enumerate(fixed.values()):
        for name, (label, colour, dashes) in labels.items():
            ax.plot(curves[name], color=colour, linestyle=dashes, linewidth=0.9, label=None if k else label)
    ax.set_xlabel("steps with one minibatch")
    ax.set_ylabel("log of its mass under q, change")
    ax.set_title("corollary I.1", fontsize="small")
    legend(ax, loc="best")


def _variances(ax: Axes, noises: Noises) -> None:
    _points(ax, noises, lambda noise: noise.variance)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("variance of the gradient (trace)")
    ax.set_title("noise of minibatch gradients", fontsize="small")
    legend(ax, loc="best")


def _cosines(ax: Axes, noises: Noises) -> None:
    _points(ax, noises, lambda noise: noise.cosine)
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.set_ylabel("cosine with the exact gradient")
    ax.set_title("what one minibatch knows", fontsize="small")
    legend(ax, loc="best")


def _points(ax: Axes, noises: Noises, value: Callable[[Noise], float]) -> None:
    first = next(iter(noises.values()))
    for index, flow in enumerate(first):
        colour, marker = BASIN_COLOURS[index], FLOW_MARKERS.get(flow, "^")
        for k, found in enumerate(noises.values()):
            heights = [value(noise) for noise in found[flow].values()]
            at = np.arange(len(heights)) + 0.25 * (index - 0.5)
            label = None if k else f"after {flow} pre-training"
            ax.plot(at, heights, marker, color=colour, markersize=5, fillstyle="none", label=label)
    names = list(next(iter(first.values())))
    ax.set_xticks(range(len(names)), names, fontsize="x-small")
