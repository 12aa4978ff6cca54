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
from boltzgen.sampling import shipped_reference

__all__ = ["CLAIMS", "KINDS", "SETTINGS", "BeyondSettings", "first_reaching", "run"]

KINDS = {"internal": "internal coordinates", "cartesian": "Cartesian coordinates"}
CONVERGED = 0.25  # of the true share
N_POINTS = 40  # of a curve


@dataclass(frozen=True)
class BeyondSettings:
    """How long everything takes.

    Attributes
    ----------
    molecule : MoleculeSettings
        Its data, the sizes of the Cartesian flow, and the pre-training of either generator.
    n_steps, n_measured : int
        Of the refinements with L2+.
    learning_rates : {kind: float}
        Of these, to zero on a cosine. A Cartesian flow needs smaller steps than one in internal coordinates.
    """

    molecule: MoleculeSettings
    n_steps: int
    n_measured: int
    learning_rates: Mapping[str, float]

    @property
    def batch_size(self) -> int:
        """Evaluations of a step."""
        return self.molecule.refinement.batch_size

    def refinement(self, kind: str) -> Refinement:
        """That of a generator."""
        rate, every = self.learning_rates[kind], max(1, self.n_steps // N_POINTS)
        return Refinement("l2+", self.n_steps, self.batch_size, rate, measure_every=every, learning_rate_end=0.0)

    def shortened(self, share: float) -> BeyondSettings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        n_steps, n_measured = max(4, round(share * self.n_steps)), max(100, round(share * self.n_measured))
        return replace(self, molecule=self.molecule.shortened(share), n_steps=n_steps, n_measured=n_measured)


SETTINGS = {
    "quick": BeyondSettings(DIALANINE_SETTINGS["quick"], 2000, 10_000, {"internal": 1e-3, "cartesian": 3e-5}),
    "paper": BeyondSettings(DIALANINE_SETTINGS["paper"], 100_000, 10_000, {"internal": 1e-3, "cartesian": 1e-4}),
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
    for seed in seeds:
        curves[seed] = {}
        for kind in KINDS:
            curves[seed][kind] = curve = _curve(data, settings, kind, seed, checkpoint)
            minor, ess = curve.values["minor"], curve.values["ess"]
            say(
                f"beyond, seed {seed}, {kind}: minor mode {minor[0]:.2f} -> {minor[-1]:.2f} %, "
                f"ESS {ess[0]:.1f} -> {ess[-1]:.1f} %"
            )
    figures = {seed: _figures(some, true, settings.batch_size) for seed, some in curves.items()}
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
            "figures": {str(seed): dict(values) for seed, values in figures.items()},
            "curves": {str(seed): {k: c.as_dict() for k, c in some.items()} for seed, some in curves.items()},
        },
        draw=partial(draw, curves, true, KINDS, settings.batch_size),
        notes=[
            "Percentages are of the samples as generated, without weights. The Cartesian generator has the alignment "
            "penalty in its target, whose factor its true share contains. Evaluations and seconds are those of the "
            "refinement; either generator was pre-trained on the same data, which takes no evaluation.",
        ],
        tables={"Refinements": _table(curves)},
    )


def first_reaching(curve: Curve, ess: float) -> int | None:
    """The first measured step at which the ESS (percent) was reached; None if never."""
    reached = [step for step, value in zip(curve.steps, curve.values["ess"], strict=True) if value >= ess]
    return reached[0] if reached else None


def _curve(
    data: MoleculeData, settings: BeyondSettings, kind: str, seed: int, checkpoint: Callable[[str], Path | None]
) -> Curve:
    sizes = settings.molecule
    config = GeneratorConfig(
        cartesian_rounds=sizes.n_rounds, cartesian_hidden=sizes.n_hidden, alignment=sizes.pretraining_strength
    )
    generator = BoltzmannGenerator.for_molecule(
        data.molecule, data.potential, coordinates=kind, hydrogens="flow", config=config, seed=seed
    )
    path = checkpoint(f"seed{seed}-{kind}-pretrained")
    pretrained_on_data(data, generator, sizes.pretraining_steps, settings.batch_size, seed, path)
    return refine(
        generator,
        settings.refinement(kind),
        lambda other: _measure(other, data, settings.n_measured),
        checkpoint=checkpoint(f"seed{seed}-{kind}"),
        identity={"seed": seed, "settings": str(settings)},
    )[0]


def _measure(generator: BoltzmannGenerator, data: MoleculeData, n: int) -> dict[str, float]:
    with torch.no_grad():
        positions, log_q = generator.flow.sample_and_log_prob(n, torch.Generator().manual_seed(MEASURE_SEED))
        ensemble: Ensemble = generator.weigh(positions, log_q)
    inside = DIALANINE.modes["minor"](torch.as_tensor(ensemble.positions[:, data.atoms])).numpy()
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


def _figures(curves: Mapping[str, Curve], true: Mapping[str, float], batch_size: int) -> Figures:
    """The figures of one seed that the claims look at."""
    common = max(curves["cartesian"].values["ess"])
    values = {"common": common}
    for kind, curve in curves.items():
        step = first_reaching(curve, common)
        values |= {kind: curve.late("minor"), f"{kind}.start": curve.values["minor"][0], f"{kind}.true": true[kind]}
        values[f"{kind}.evaluations"] = math.nan if step is None else step * batch_size
        values[f"{kind}.seconds"] = math.nan if step is None else curve.seconds * step / curve.steps[-1]
    return values


def _choices(settings: BeyondSettings) -> list[Choice]:
    molecule, rates = settings.molecule, settings.learning_rates
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
            f"KL_z on the data for {molecule.pretraining_steps:,} steps, then L2+ for {settings.n_steps:,} with "
            f"learning rates of {rates['internal']:g} (internal) and {rates['cartesian']:g} (Cartesian), to zero on a "
            f"cosine; batches of {settings.batch_size}, {settings.n_measured:,} samples a point",
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
            cells = [f"{curve.values[name][at]:.2f}" for name in ("minor", "reweighted", "ess") for at in (0, -1)]
            rows.append(
                (KINDS[kind], str(seed), *cells, f"{curve.seconds:.0f}", f"{curve.skipped}", curve.failed or "")
            )
    heads = [f"{what} {when}" for what in ("minor %", "reweighted %", "ESS %") for when in ("start", "end")]
    return markdown_table(("generator", "seed", *heads, "seconds", "steps left out", "failed"), rows)
