"""Figure 2: butane, pre-trained with an alignment penalty and refined without one.

The refinement's target has no bounds: "essentially asking the generated density to expand infinitely in the
translational degrees of freedom and to cover all possible rotations" (section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from boltzgen.measures import torsion
from boltzgen.plotting.style import Array
from boltzgen.progress import format_duration
from boltzgen.reproduce.butane_claims import CLAIMS
from boltzgen.reproduce.butane_figure import Drawn, draw
from boltzgen.reproduce.claims import Figures, examine, markdown_table
from boltzgen.reproduce.curves import Curve, Refinement
from boltzgen.reproduce.frames import Share
from boltzgen.reproduce.heavy_atoms import HeavyAtoms, MoleculeCase, prepare
from boltzgen.reproduce.hydrogen_bias import Estimate, equation_32, internal_generator, with_partition_function
from boltzgen.reproduce.molecule_curves import (
    PULLS,
    Refined,
    checkpoints_in,
    cloud_of,
    oriented_data,
    pull_table,
    refine_all,
)
from boltzgen.reproduce.molecule_settings import CurveKind, MoleculeSettings, Sampling, common_choices
from boltzgen.reproduce.report import Choice, Report

__all__ = ["BUTANE", "CURVES", "SETTINGS", "run"]

ANTI = math.radians(120)


def dihedral(heavy: Tensor) -> Tensor:
    """The torsion C1-C2-C3-C4 (B,) in radians, of the carbons (B, 4, 3)."""
    return torsion(heavy, (0, 1, 2, 3))


BUTANE = MoleculeCase(
    name="butane",
    structure="butane.pdb",
    forcefield="charmm36m_butane.xml",
    modes={
        "anti": lambda heavy: dihedral(heavy).abs() >= ANTI,
        "gauche+": lambda heavy: (dihedral(heavy) > 0) & (dihedral(heavy) < ANTI),
        "gauche-": lambda heavy: (dihedral(heavy) <= 0) & (dihedral(heavy) > -ANTI),
    },
)

CURVES = (
    CurveKind("kl-x", "KL_x", "reverse-kl"),
    CurveKind("kl-z-df", "KL_z data-free", "weighted-forward-kl"),
    CurveKind("l2+", "L2+", "l2+"),
)

PLACED = Sampling(
    100_000, 4, 800.0, save_interval=100, time_step=4.0, n_walkers=64, trajectory=25, exchange_interval=25
)

SETTINGS = {
    "quick": MoleculeSettings(
        temperature=300.0,
        reference=Sampling(25_000, 5, 1000.0, save_interval=100),
        data=Sampling(12_000, 5, 1000.0, save_interval=100),
        placed=replace(PLACED, n_steps=6000),
        placement_steps=400,
        pretraining_steps=1000,
        refinement=Refinement("", n_steps=1000, batch_size=256, learning_rate=1e-4, measure_every=50),
        n_measured=2000,
        refinement_strength=0.0,
        n_rounds=8,
        n_hidden=128,
    ),
    "paper": MoleculeSettings(
        temperature=300.0,
        reference=Sampling(200_000, 6, 1200.0, save_interval=200),
        data=Sampling(100_000, 6, 1200.0, save_interval=200),
        placed=PLACED,
        placement_steps=2000,
        pretraining_steps=10_000,
        refinement=Refinement("", n_steps=100_000, batch_size=256, learning_rate=1e-4, measure_every=1000),
        n_measured=10_000,
        refinement_strength=0.0,
    ),
}


def run(
    settings: MoleculeSettings,
    seeds: Sequence[int],
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    scale: str = "own settings",
) -> Report:
    """The experiment with settings of one's own.

    Parameters
    ----------
    settings : MoleculeSettings
    seeds : sequence of int
    folder : Path, optional
        Checkpoints go to ``folder/checkpoints``; nowhere if absent.
    say : callable
        Takes a line for every part.

    Raises
    ------
    CheckpointError, RunInterrupted, OutputError
        See `boltzgen.reproduce.reproduce`.
    """
    checkpoint = checkpoints_in(folder, f"butane-{scale}")
    heavy = prepare(BUTANE, settings, checkpoint, say)
    strength = settings.refinement_strength
    solid, dashed = (heavy.shares(frames, strength) for frames in (heavy.true, heavy.minimized))
    checks = _checks(heavy, settings, checkpoint)
    found: dict[int, Refined] = {}
    drawn: dict[str, Drawn] = {}
    for seed in seeds:
        found[seed] = refine_all(heavy, settings, CURVES, seed, checkpoint, say)
        if seed == seeds[0]:
            drawn = _drawn(heavy, settings, found[seed])
    curves = {seed: refined.curves for seed, refined in found.items()}
    figures = {seed: _figures(refined, solid, dashed) for seed, refined in found.items()}
    return Report(
        name="butane",
        title="Butane: figure 2",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, figures),
        choices=_choices(settings),
        settings=asdict(settings),
        values={
            "solid": {name: asdict(share) for name, share in solid.items()},
            "dashed": {name: asdict(share) for name, share in dashed.items()},
            "checks": {name: found.as_dict() for name, found in checks.items()},
            "pulls": {str(seed): one.pulls for seed, one in found.items()},
            "figures": {str(seed): dict(values) for seed, values in figures.items()},
            "curves": {str(seed): {k: c.as_dict() for k, c in some.items()} for seed, some in curves.items()},
        },
        draw=partial(draw, curves, drawn, solid, dashed, {kind.name: kind.label for kind in CURVES}, seeds[0]),
        notes=_notes(heavy, settings, curves),
        tables={
            "Populations": _populations(heavy.shares(heavy.data), solid, dashed, checks),
            "Refinements": _table(curves),
            PULLS: pull_table(found),
        },
    )


def _figures(refined: Refined, solid: Mapping[str, Share], dashed: Mapping[str, Share]) -> Figures:
    """The figures of one seed that the claims look at."""
    values: dict[str, float] = {}
    for name, shares in (("solid", solid), ("dashed", dashed)):
        plus, minus = shares["gauche+"], shares["gauche-"]
        values[name] = 100 - shares["anti"].percent
        values[f"{name}.error"] = shares["anti"].error
        values[f"{name}.asymmetry"] = abs(plus.percent - minus.percent)
        values[f"{name}.asymmetry_error"] = math.hypot(plus.error, minus.error)
    for name, curve in refined.curves.items():
        for mode in BUTANE.modes:
            values[f"{name}.{mode}"] = curve.late(mode)
        values[f"{name}.gauche"] = curve.late("gauche+") + curve.late("gauche-")
        for figure in ("spread", "energy", "energy_90", "surprise"):
            values[f"{name}.{figure}"] = curve.late(figure)
    for figure in ("spread", "energy", "energy_90", "surprise", "ess"):
        values[f"start.{figure}"] = refined.start[figure]
    values["start.gauche"] = refined.start["gauche+"] + refined.start["gauche-"]
    return values


def _drawn(heavy: HeavyAtoms, settings: MoleculeSettings, refined: Refined) -> dict[str, Drawn]:
    """Samples and data under every generator of one seed."""
    data = oriented_data(heavy, settings)
    drawn = {}
    for name, generator in refined.generators.items():
        samples, given = cloud_of(heavy, generator), cloud_of(heavy, generator, data)
        drawn[name] = Drawn(samples, given, *(dihedral_degrees(cloud.heavy) for cloud in (samples, given)))
    return drawn


def dihedral_degrees(heavy: Array) -> Array:
    """The torsion of the carbons (n, 4, 3), in degrees from 0 to 360 so that no mode is cut."""
    return np.degrees(dihedral(torch.as_tensor(heavy)).numpy()) % 360


def _notes(heavy: HeavyAtoms, settings: MoleculeSettings, curves: Mapping[int, Mapping[str, Curve]]) -> list[str]:
    seconds = sum(curve.seconds for some in curves.values() for curve in some.values())
    target = (
        "The refinement keeps the alignment penalty of the pre-training; solid and dashed have its factor."
        if settings.refinement_strength
        else "The target of the refinement has no alignment penalty, so it is not normalisable and no effective sample "
        "size is to be had. The penalty of the pre-training is in the density that the refinement starts from."
    )
    return [
        "Percentages are of the samples as generated, without weights, the mean over the last quarter of the "
        f"refinement; {settings.n_measured:,} samples a point. Errors of references: one standard error, from "
        "independent ladders.",
        target,
        f"Wall time of all refinements: {format_duration(seconds)}; of the data {format_duration(heavy.data.seconds)}, "
        f"of the reference {format_duration(heavy.true.seconds)}, of the populations with hydrogens at their minimum "
        f"{format_duration(heavy.minimized.seconds)}.",
    ]


def _choices(settings: MoleculeSettings) -> list[Choice]:
    return [
        Choice(
            "force field",
            "CHARMM36m",
            "the parameters of CGenFF in OpenMM's charmm36_2024.xml, with the residue BUTA added "
            "(systems/charmm36m_butane.xml); in vacuum",
        ),
        Choice("temperature", "not given", f"{settings.temperature:g} K"),
        Choice("modes", "three, by the dihedral of the carbons", "anti from 120 to 240 degrees, gauche on either side"),
        *common_choices(settings),
        Choice("L2+", "not shown for butane", "the same refinement"),
    ]


def _checks(
    heavy: HeavyAtoms, settings: MoleculeSettings, checkpoint: Callable[[str], Path | None]
) -> dict[str, Estimate]:
    """The dashed populations from frames of the Boltzmann distribution, by two kinds of weights."""
    steps, batch_size = max(settings.pretraining_steps // 10, 1), settings.refinement.batch_size
    internal = internal_generator(heavy, steps, batch_size, 0, checkpoint("hydrogens"))
    return {
        "dashed, by exp(-U(h)/kT) / Z_H(x_C)": with_partition_function(heavy, internal, settings.refinement_strength),
        "dashed, by equation 32": equation_32(heavy, settings.refinement_strength),
    }


def _populations(
    data: Mapping[str, Share],
    solid: Mapping[str, Share],
    dashed: Mapping[str, Share],
    checks: Mapping[str, Estimate],
) -> str:
    rows = [
        ("data of the pre-training", *(str(data[name]) for name in BUTANE.modes), ""),
        ("Boltzmann (solid)", *(str(solid[name]) for name in BUTANE.modes), ""),
        ("hydrogens at their minimum (dashed)", *(str(dashed[name]) for name in BUTANE.modes), ""),
    ]
    for what, found in checks.items():
        effective = f"{found.effective:.1f} of {found.n:,}"
        rows.append((what, *(str(found.shares[name]) for name in BUTANE.modes), effective))
    return markdown_table(("target", *BUTANE.modes, "effective samples"), rows)


def _table(curves: Mapping[int, Mapping[str, Curve]]) -> str:
    labels, rows = {kind.name: kind.label for kind in CURVES}, []
    for seed, some in curves.items():
        for name, curve in some.items():
            first, last = ({k: v[i] for k, v in curve.values.items()} for i in (0, -1))
            shares = [f"{at[mode]:.1f}" for mode in BUTANE.modes for at in (first, last)]
            rest = [f"{at[k]:.3g}" for k in ("spread", "energy", "surprise") for at in (first, last)]
            rows.append((labels[name], str(seed), *shares, *rest, f"{curve.skipped}", curve.failed or ""))
    heads = [
        f"{what} {when}"
        for what in (*BUTANE.modes, "spread / nm", "median u", "-log q of data")
        for when in ("start", "end")
    ]
    return markdown_table(("refinement", "seed", *heads, "steps left out", "failed"), rows)
