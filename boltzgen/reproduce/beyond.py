"""Beyond the paper: hydrogens drawn from a flow, and internal coordinates beside Cartesian ones, on dialanine.

"This can be lifted by using a conditional normalizing flow" (section 4): the target is then the Boltzmann distribution
of all atoms, and the minor mode must come to its true share, the solid line of figure 3b, not the dashed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from boltzgen.ensemble import Ensemble
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.reproduce.beyond_figure import draw
from boltzgen.reproduce.claims import Claim, Figures, examine, markdown_table
from boltzgen.reproduce.curves import Curve, Refinement, refine
from boltzgen.reproduce.dialanine import DIALANINE
from boltzgen.reproduce.dialanine import SETTINGS as DIALANINE_SETTINGS
from boltzgen.reproduce.heavy_atoms import MoleculeData, prepare_data
from boltzgen.reproduce.hydrogen_bias import pretrained_on_data
from boltzgen.reproduce.molecule_curves import MEASURE_SEED, checkpoints_in
from boltzgen.reproduce.molecule_settings import MoleculeSettings
from boltzgen.reproduce.report import Choice, Report
from boltzgen.reproduce.rest import RESTS, WHERE_IT_RESTS, Rest, rest, rest_table
from boltzgen.sampling import shipped_reference

__all__ = ["CLAIMS", "KINDS", "SETTINGS", "BeyondSettings", "first_reaching", "run"]

KINDS = {"internal": "internal coordinates", "cartesian": "Cartesian coordinates"}
CONVERGED = 0.25  # of the true share
MEASURED = {"minor": "minor %", "reweighted": "reweighted %", "ess": "ESS %"}
N_POINTS = 40  # of a curve
BATCH_SIZE = 256  # of all trainings


@dataclass(frozen=True)
class BeyondSettings:
    """How long everything takes.

    Attributes
    ----------
    molecule : MoleculeSettings
        Its data, the sizes of the Cartesian flow, and the pre-training of either generator.
    refinements : {kind: Refinement}
        A Cartesian flow needs smaller steps than one in internal coordinates.
    n_measured : int
        Samples of a point.
    n_rest : int
        Samples of which `Rest` is.
    """

    molecule: MoleculeSettings
    refinements: Mapping[str, Refinement]
    n_measured: int
    n_rest: int = 100_000

    def shortened(self, share: float) -> BeyondSettings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        refinements = {
            kind: refinement(max(4, round(share * one.n_steps)), one.learning_rate)
            for kind, one in self.refinements.items()
        }
        return replace(
            self,
            molecule=self.molecule.shortened(share),
            refinements=refinements,
            n_measured=max(100, round(share * self.n_measured)),
            n_rest=max(2 * BATCH_SIZE, round(share * self.n_rest)),
        )


def refinement(n_steps: int, learning_rate: float) -> Refinement:
    """With L2+, the learning rate to zero on a cosine."""
    every = max(1, n_steps // N_POINTS)
    return Refinement("l2+", n_steps, BATCH_SIZE, learning_rate, measure_every=every, learning_rate_end=0.0)


SETTINGS = {
    "quick": BeyondSettings(
        DIALANINE_SETTINGS["quick"],
        {"internal": refinement(2000, 1e-3), "cartesian": refinement(2000, 3e-5)},
        n_measured=10_000,
    ),
    "paper": BeyondSettings(
        DIALANINE_SETTINGS["paper"],
        {"internal": refinement(100_000, 1e-3), "cartesian": refinement(100_000, 1e-4)},
        n_measured=10_000,
    ),
}

CLAIMS = (
    *(
        Claim(
            key=f"{kind} to the true share",
            where="section 4 (said there to be possible)",
            paper="a conditional flow of the hydrogens lifts the bias of their placement",
            rule=f"with {words} and L2+, the minor mode as generated, in the last quarter, is within a quarter of its "
            "true share",
            holds=lambda f, kind=kind: abs(f[kind] - f[f"{kind}.true"]) <= CONVERGED * f[f"{kind}.true"],  # type: ignore[misc]
            shown={f"{kind}.start": "start", kind: "end", f"{kind}.true": "true"},
            unit="% in the minor mode",
        )
        for kind, words in KINDS.items()
    ),
    Claim(
        key="fewer evaluations",
        where="not in the paper",
        paper="internal coordinates need fewer evaluations than Cartesian ones",
        rule="L2+ in internal coordinates has the highest ESS of the Cartesian generator after fewer evaluations",
        holds=lambda f: f["internal.evaluations"] < f["cartesian.evaluations"],
        shown={
            "common": "ESS in %",
            "internal.evaluations": "evaluations, internal",
            "cartesian.evaluations": "Cartesian",
            "internal.seconds": "seconds, internal",
            "cartesian.seconds": "Cartesian ",
        },
    ),
)


def run(
    settings: BeyondSettings,
    seeds: Sequence[int],
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    scale: str = "own settings",
) -> Report:
    """The experiment with settings of one's own.

    Parameters
    ----------
    settings : BeyondSettings
    seeds : sequence of int
    folder : Path, optional
        Checkpoints go to ``folder/checkpoints``, the data to those of the experiment "dialanine"; nowhere if absent.
    say : callable
        Takes a line for every part.

    Raises
    ------
    CheckpointError, RunInterrupted, OutputError
        See `boltzgen.reproduce.reproduce`.
    """
    checkpoint = checkpoints_in(folder, f"beyond-{scale}")
    data = prepare_data(DIALANINE, settings.molecule, checkpoints_in(folder, f"dialanine-{scale}"), say)
    true = _true_shares(data, settings)
    curves: dict[int, dict[str, Curve]] = {}
    rests: dict[int, dict[str, Rest]] = {}
    for seed in seeds:
        curves[seed], rests[seed] = {}, {}
        for kind in KINDS:
            curve, generator = _refined(data, settings, kind, seed, checkpoint)
            curves[seed][kind] = curve
            rests[seed][kind] = rest(generator, partial(_in_minor, data), settings.n_rest, BATCH_SIZE)
            minor, ess = curve.values["minor"], curve.values["ess"]
            say(
                f"beyond, seed {seed}, {kind}: minor mode {minor[0]:.2f} -> {minor[-1]:.2f} %, "
                f"ESS {ess[0]:.1f} -> {ess[-1]:.1f} %; in the end {rests[seed][kind]}"
            )
    figures = {seed: _figures(some, true) for seed, some in curves.items()}
    return Report(
        name="beyond",
        title="Beyond the paper: hydrogens from a flow, and internal coordinates",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, figures),
        choices=_choices(settings),
        settings=asdict(settings),
        values={
            "true": true,
            "rest": {str(seed): {kind: asdict(one) for kind, one in some.items()} for seed, some in rests.items()},
            "figures": {str(seed): dict(values) for seed, values in figures.items()},
            "curves": {str(seed): {k: c.as_dict() for k, c in some.items()} for seed, some in curves.items()},
        },
        draw=partial(draw, curves, true, KINDS, BATCH_SIZE),
        notes=[
            "Percentages are of the samples as generated, without weights. The Cartesian generator has the alignment "
            "penalty in its target, whose factor its true share contains. Evaluations and seconds are those of the "
            "refinement; either generator was pre-trained on the same data, which takes no evaluation.",
            RESTS,
        ],
        tables={
            "Refinements": _table(curves),
            WHERE_IT_RESTS: rest_table(
                (KINDS[kind], seed, true[kind], one) for seed, some in rests.items() for kind, one in some.items()
            ),
        },
    )


def _in_minor(data: MoleculeData, positions: Tensor) -> Tensor:
    """Whether configurations (B, N, 3) are in the minor mode, (B,) bool."""
    return DIALANINE.modes["minor"](positions[:, data.atoms])


def first_reaching(curve: Curve, ess: float) -> int | None:
    """The first measured step at which the ESS (percent) was reached; None if never."""
    reached = [step for step, value in zip(curve.steps, curve.values["ess"], strict=True) if value >= ess]
    return reached[0] if reached else None


def _refined(
    data: MoleculeData, settings: BeyondSettings, kind: str, seed: int, checkpoint: Callable[[str], Path | None]
) -> tuple[Curve, BoltzmannGenerator]:
    sizes = settings.molecule
    config = GeneratorConfig(
        cartesian_rounds=sizes.n_rounds, cartesian_hidden=sizes.n_hidden, alignment=sizes.pretraining_strength
    )
    generator = BoltzmannGenerator.for_molecule(
        data.molecule, data.potential, coordinates=kind, hydrogens="flow", config=config, seed=seed
    )
    path = checkpoint(f"seed{seed}-{kind}-pretrained")
    pretrained_on_data(data, generator, sizes.pretraining_steps, BATCH_SIZE, seed, path)
    return refine(
        generator,
        settings.refinements[kind],
        lambda other: _measure(other, data, settings.n_measured),
        checkpoint=checkpoint(f"seed{seed}-{kind}"),
        identity={"seed": seed, "settings": sizes.trained, "n_measured": settings.n_measured},
    )


def _measure(generator: BoltzmannGenerator, data: MoleculeData, n: int) -> dict[str, float]:
    with torch.no_grad():
        positions, log_q = generator.flow.sample_and_log_prob(n, torch.Generator().manual_seed(MEASURE_SEED))
        ensemble: Ensemble = generator.weigh(positions, log_q)
    inside = _in_minor(data, torch.as_tensor(ensemble.positions)).numpy()
    return {
        "minor": 100 * float(inside.mean()),
        "reweighted": 100 * float(ensemble.unbiased().weights @ inside),
        "ess": 100 * ensemble.ess_fraction,
    }


def _true_shares(data: MoleculeData, settings: BeyondSettings) -> dict[str, float]:
    """Percent in the minor mode; with the penalty's factor, from the reference, for the Cartesian generator."""
    plain = data.shares(data.true)["minor"].percent
    penalised = data.shares(data.true, settings.molecule.pretraining_strength)["minor"].percent
    shipped = shipped_reference(data.molecule)
    true = plain if shipped is None else 100 * shipped.free_energies["C7ax"]["probability"]
    return {"internal": true, "cartesian": true * penalised / plain if plain else true}


def _figures(curves: Mapping[str, Curve], true: Mapping[str, float]) -> Figures:
    """The figures of one seed that the claims look at."""
    common = max(curves["cartesian"].values["ess"])
    values = {"common": common}
    for kind, curve in curves.items():
        step = first_reaching(curve, common)
        values |= {kind: curve.late("minor"), f"{kind}.start": curve.values["minor"][0], f"{kind}.true": true[kind]}
        values[f"{kind}.evaluations"] = math.nan if step is None else step * BATCH_SIZE
        values[f"{kind}.seconds"] = math.nan if step is None else curve.seconds * step / curve.steps[-1]
    return values


def _choices(settings: BeyondSettings) -> list[Choice]:
    molecule, internal, cartesian = settings.molecule, *(settings.refinements[kind] for kind in KINDS)
    return [
        Choice("data, temperature, force field", "", "those of the experiment dialanine"),
        Choice(
            "true share",
            "about 6 %",
            "the converged reference that comes with the package, in the domain of the structure",
        ),
        Choice(
            "generators",
            "Cartesian, hydrogens at their minimum",
            f"hydrogens from the package's conditional flow; Cartesian heavy atoms by {molecule.n_rounds} x 4 "
            f"couplings of {molecule.n_hidden}, or internal coordinates by the package's default flow",
        ),
        Choice(
            "training",
            "",
            f"KL_z on the data for {molecule.pretraining_steps:,} steps, then L2+ for {internal.n_steps:,} (internal) "
            f"and {cartesian.n_steps:,} (Cartesian) with learning rates of {internal.learning_rate:g} and "
            f"{cartesian.learning_rate:g}, to zero on a cosine; batches of {BATCH_SIZE}, {settings.n_measured:,} "
            "samples a point",
        ),
        Choice(
            "outside the domain",
            "",
            "the target is zero there: Cartesian samples of wrong chirality, or stretched beyond bounds, are left out",
        ),
    ]


def _table(curves: Mapping[int, Mapping[str, Curve]]) -> str:
    rows = []
    for seed, some in curves.items():
        for kind, curve in some.items():
            cells = [f"{curve.values[name][at]:.2f}" for name in MEASURED for at in (0, -1)]
            rows.append(
                (KINDS[kind], str(seed), *cells, f"{curve.seconds:.0f}", f"{curve.skipped}", curve.failed or "")
            )
    heads = [f"{what} {when}" for what in MEASURED.values() for when in ("start", "end")]
    return markdown_table(("generator", "seed", *heads, "seconds", "steps left out", "failed"), rows)
