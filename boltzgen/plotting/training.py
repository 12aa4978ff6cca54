"""Pictures of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from boltzgen.plotting.style import (
    BASIN_COLOURS,
    BASIN_MARKERS,
    REWEIGHTED,
    axes_or_new,
    count_of,
    legend,
    number,
    plain,
)

if TYPE_CHECKING:
    from boltzgen.training import History

__all__ = ["populations", "training_curve"]


def training_curve(history: History, ax: Sequence[Axes] | None = None, *, temperature_unit: str = "K") -> NDArray[Any]:
    """Loss, effective sample size and temperature against energy evaluations, the stages shaded.

    Losses of different stages are different functions: compare them within a stage only.

    Parameters
    ----------
    history : History
    ax : three Axes, optional
        For the loss, the effective sample size and the temperature.
    temperature_unit : str
        Of the records: "K", or for a generator without molecule the target temperature itself.

    Returns
    -------
    (3,) array of Axes

    Raises
    ------
    ValueError
        If the history is empty, or other than three Axes are given.
    """
    records = _records(history)
    if ax is None:
        ax = plt.subplots(3, 1, figsize=(6.0, 5.4), sharex=True, layout="constrained")[1]
    axes = np.asarray(ax, dtype=object).ravel()
    if len(axes) != 3:
        raise ValueError(f"a training curve needs three Axes, not {len(axes)}")
    keys = ("loss", "ess_fraction", "temperature")
    for panel, key, label in zip(axes, keys, ("loss", "ESS / n", f"temperature / {temperature_unit}"), strict=True):
        plain(panel)
        _shade_stages(panel, records, names=panel is axes[0])
        for _, group in groupby(records, key=lambda record: record["stage"]):
            part = list(group)
            values = [number(record.get(key)) for record in part]
            panel.plot([r["energy_evaluations"] for r in part], values, marker=_marker(records, "."), **REWEIGHTED)
        panel.set_ylabel(label)
    lost = sum(not np.isfinite(number(record.get("loss"))) for record in records)
    if lost:
        axes[0].annotate(count_of(lost, "not finite"), (0.02, 0.05), xycoords="axes fraction", fontsize="x-small")
    _scale_loss(axes[0], records)
    axes[1].set_ylim(0.0, 1.0)
    axes[2].set_ylim(bottom=0.0)
    axes[2].set_xlabel("energy evaluations")
    return axes


def populations(history: History, ax: Axes | None = None, *, reference: Mapping[str, float] | None = None) -> Axes:
    """Reweighted population of each basin through the training: a mode that is being lost shows here first.

    Parameters
    ----------
    history : History
    ax : Axes, optional
    reference : mapping of basin to probability, optional
        Drawn as horizontal lines.

    Raises
    ------
    ValueError
        If the history is empty or names no basin.
    """
    records = _records(history)
    basins = list(dict.fromkeys(name for record in records for name in record.get("populations") or {}))
    if not basins:
        raise ValueError("no basin was followed in this training")
    ax = axes_or_new(ax, (6.0, 3.0))
    _shade_stages(ax, records, names=True)
    evaluations = np.array([record["energy_evaluations"] for record in records], dtype=float)
    for i, name in enumerate(basins):
        values = np.array([number((record.get("populations") or {}).get(name)) for record in records])
        colour, marker = BASIN_COLOURS[i % len(BASIN_COLOURS)], BASIN_MARKERS[i % len(BASIN_MARKERS)]
        empty = int((values == 0).sum())
        label = f"{name} ({count_of(empty, 'records at zero')})" if empty else name
        positive = np.where(values > 0, values, np.nan)
        ax.plot(
            evaluations,
            positive,
            color=colour,
            marker=_marker(records, marker),
            markersize=3,
            linewidth=1.5,
            label=label,
        )
        if reference and reference.get(name) is not None:
            ax.axhline(reference[name], color=colour, linestyle=(0, (4, 2)), linewidth=1.2, label=f"{name}, reference")
    ax.set_yscale("log")
    ax.set_ylim(top=1.5)
    ax.set_xlabel("energy evaluations")
    ax.set_ylabel("population, reweighted")
    legend(ax, loc="best")
    return ax


def _records(history: History) -> list[dict[str, Any]]:
    if not history.records:
        raise ValueError("the training history is empty")
    return list(history.records)


def _marker(records: list[dict[str, Any]], marker: str) -> str | None:
    return marker if len(records) <= 40 else None


def _scale_loss(ax: Axes, records: list[dict[str, Any]]) -> None:
    """A logarithmic axis where the losses of the stages differ by more than a linear one can show."""
    losses = np.array([number(record.get("loss")) for record in records])
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return
    typical = float(np.median(np.abs(losses)))
    if losses.min() > 0 and losses.max() > 30.0 * losses.min():
        ax.set_yscale("log")
    elif np.ptp(losses) > 100.0 * max(typical, 1e-12):
        ax.set_yscale("symlog", linthresh=max(typical, 1e-3))


def _shade_stages(ax: Axes, records: list[dict[str, Any]], *, names: bool) -> None:
    stages = [
        (name, float(list(part)[-1]["energy_evaluations"])) for name, part in groupby(records, lambda r: r["stage"])
    ]
    ends = [end for _, end in stages]
    starts = [0.0] + ends[:-1]
    # Names of short stages would run into their neighbours': every second one goes a line higher.
    crowded = any(end - start < 0.18 * ends[-1] for start, end in zip(starts, ends, strict=True))
    for i, ((stage, end), start) in enumerate(zip(stages, starts, strict=True)):
        if i % 2 == 0:
            ax.axvspan(start, end, color="#000000", alpha=0.05, linewidth=0)
        if names:
            at = (0.5 * (start + end), 1.09 if crowded and i % 2 else 1.02)
            ax.annotate(str(stage), at, xycoords=("data", "axes fraction"), ha="center", fontsize="x-small")
    ax.set_xlim(0.0, max(ends[-1], 1.0))
    ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 4), useMathText=True)
