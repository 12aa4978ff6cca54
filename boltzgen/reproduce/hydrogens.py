"""What hydrogens at their energy minimum do to populations of butane and dialanine, and what equation 32 makes of it.

Sampling on U(h(x_C)) has errors as large as the change itself. Weights on frames of the Boltzmann distribution show the
change alone: the same frames are counted with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.reproduce import butane, dialanine
from boltzgen.reproduce.claims import Claim, Figures, examine, markdown_table
from boltzgen.reproduce.frames import Array, Share
from boltzgen.reproduce.heavy_atoms import HeavyAtoms, MoleculeCase, prepare
from boltzgen.reproduce.hydrogen_bias import (
    DRAWS,
    equation_32_weights,
    harmonic_weights,
    internal_generator,
    partition_function_weights,
)
from boltzgen.reproduce.hydrogens_figure import draw
from boltzgen.reproduce.molecule_curves import checkpoints_in
from boltzgen.reproduce.molecule_settings import MoleculeSettings
from boltzgen.reproduce.report import Choice, Report

__all__ = ["CLAIMS", "SETTINGS", "HydrogensSettings", "run"]

ENOUGH = 100.0  # effective samples that an estimate needs
HALF = 0.5
CASES = {"butane": butane.BUTANE, "dialanine": dialanine.DIALANINE}
MODES = {
    "butane": lambda heavy: ~butane.BUTANE.modes["anti"](heavy),
    "dialanine": dialanine.DIALANINE.modes["minor"],
}
PARTITION, HARMONIC, EQUATION_32 = "exp(-U(h)/kT) / Z_H by a flow", "harmonic hydrogens", "equation 32"
BOLTZMANN, SAMPLED = "Boltzmann", "sampled from U(h(x_C))"
SUBSETS = (64, 16, 4, 1)  # parts of the frames, in which effective samples are counted


@dataclass(frozen=True)
class HydrogensSettings:
    """How much is computed.

    Attributes
    ----------
    molecules : {name: MoleculeSettings}
        Their references, networks for hydrogens, and samplings with hydrogens at their minimum.
    density_steps : int
        Of the pre-training with KL_z of the flow whose hydrogens give Z_H.
    """

    molecules: Mapping[str, MoleculeSettings]
    density_steps: int

    def shortened(self, share: float) -> HydrogensSettings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        molecules = {name: one.shortened(share) for name, one in self.molecules.items()}
        return replace(self, molecules=molecules, density_steps=max(4, round(share * self.density_steps)))


SETTINGS = {
    scale: HydrogensSettings({"butane": butane.SETTINGS[scale], "dialanine": dialanine.SETTINGS[scale]}, density_steps)
    for scale, density_steps in (("quick", 1500), ("paper", 10_000))
}

CLAIMS = (
    Claim(
        key="butane changes",
        where="section 2, fig. 2b",
        paper="hydrogens at their minimum change the target ratio between the modes of butane",
        rule="weights exp(-U(h)/kT) / Z_H change the share of the gauche modes on the same frames by more than three "
        "standard errors",
        holds=lambda f: abs(f["butane.change"]) > 3 * f["butane.change_error"],
        shown={
            "butane.boltzmann": "Boltzmann",
            "butane.change": "change",
            "butane.change_error": "its standard error",
        },
        unit="% gauche",
    ),
    Claim(
        key="dialanine loses its minor mode",
        where="section 4, fig. 3b",
        paper="hydrogens at their minimum lower the share of the minor mode of dialanine, from 6 % to 1.21 %",
        rule="weights exp(-U(h)/kT) / Z_H leave less than half of its share on the same frames",
        holds=lambda f: f["dialanine.change"] < -HALF * f["dialanine.boltzmann"],
        shown={
            "dialanine.boltzmann": "Boltzmann",
            "dialanine.change": "change",
            "dialanine.change_error": "its standard error",
        },
        unit="% in the minor mode",
    ),
    *(
        Claim(
            key=f"equation 32 for {name}",
            where="appendix E, eq. 32",
            paper=f"weights exp(beta [U(x) - U(h(x))]) give the expected shares ({name})",
            rule=f"they leave at least {ENOUGH:g} effective samples",
            holds=lambda f, name=name: f[f"{name}.effective"] >= ENOUGH,  # type: ignore[misc]
            shown={f"{name}.effective": "equation 32", f"{name}.z_h": "with Z_H", f"{name}.n": "of"},
            unit="effective samples",
        )
        for name in CASES
    ),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of one molecule with one seed.

    Attributes
    ----------
    shares : {estimate: Share}
        Of the mode in question: gauche of butane, the minor one of dialanine.
    changes : {estimate: Share}
        Against the same frames without weights.
    effective : {estimate: {n: float}}
        Kish's effective number of samples among the first n.
    left_out : int
        Frames without a harmonic Z_H.
    """

    shares: dict[str, Share]
    changes: dict[str, Share]
    effective: dict[str, dict[int, float]]
    left_out: int

    def figures(self, name: str) -> Figures:
        """By name, for the claims."""
        values = {"boltzmann": self.shares[BOLTZMANN].percent}
        values |= {"change": self.changes[PARTITION].percent, "change_error": self.changes[PARTITION].error}
        n = max(self.effective[PARTITION])
        values |= {"n": n, "effective": self.effective[EQUATION_32][n], "z_h": self.effective[PARTITION][n]}
        return {f"{name}.{key}": value for key, value in values.items()}


def run(
    settings: HydrogensSettings,
    seeds: Sequence[int],
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    scale: str = "own settings",
) -> Report:
    """The experiment with settings of one's own.

    Parameters
    ----------
    settings : HydrogensSettings
    seeds : sequence of int
        Of the densities of hydrogens, and of what is drawn from them; the frames are those of one reference.
    folder : Path, optional
        References and networks go to the checkpoints of the experiments "butane" and "dialanine"; nowhere if absent.
    say : callable
        Takes a line for every part.

    Raises
    ------
    CheckpointError, RunInterrupted, OutputError
        See `boltzgen.reproduce.reproduce`.
    """
    found: dict[str, dict[int, Outcome]] = {}
    for name, case in CASES.items():
        found[name] = _outcomes(name, case, settings, seeds, checkpoints_in(folder, f"{name}-{scale}"), say)
    figures = {
        seed: {key: value for name, some in found.items() for key, value in some[seed].figures(name).items()}
        for seed in seeds
    }
    return Report(
        name="hydrogens",
        title="Hydrogens at their minimum: what they change, and equation 32",
        scale=scale,
        seeds=tuple(seeds),
        findings=examine(CLAIMS, figures),
        choices=_choices(settings),
        settings=asdict(settings),
        values={"outcomes": {name: {str(s): asdict(one) for s, one in some.items()} for name, some in found.items()}},
        draw=partial(draw, found),
        notes=[
            "All seeds have the same frames, and densities of hydrogens of their own. Errors: one standard error, from "
            "independent walkers; those of changes are of the difference on the same frames, in which most of the "
            "sampling error cancels.",
            "Harmonic hydrogens: Z_H(x_C) from the second derivatives of U by the hydrogens at h(x_C), the integral of "
            "a quadratic function: a check without a density of hydrogens, but methyls that turn freely are not "
            f"harmonic. Frames without a harmonic Z_H, left out of that row: {_left_out(found)}.",
            f"Z_H by a flow: the mean of exp(-U/kT) / q over {DRAWS} hydrogens for every frame, its own and draws from "
            "q. No alignment penalty here.",
        ],
        tables={name: _table(some) for name, some in found.items()},
    )


def _outcomes(
    name: str,
    case: MoleculeCase,
    settings: HydrogensSettings,
    seeds: Sequence[int],
    checkpoint: Callable[[str], Path | None],
    say: Callable[[str], None],
) -> dict[int, Outcome]:
    """Of one molecule, by seed."""
    own = settings.molecules[name]
    heavy = prepare(case, own, checkpoint, say)
    batch_size, shared = own.refinement.batch_size, {HARMONIC: harmonic_weights(heavy)}
    shared[EQUATION_32] = equation_32_weights(heavy)
    outcomes = {}
    for seed in seeds:
        path = checkpoint(f"seed{seed}-hydrogens")
        internal = internal_generator(heavy, settings.density_steps, batch_size, seed, path)
        weights = {PARTITION: partition_function_weights(heavy, internal, seed=seed), **shared}
        outcomes[seed] = one = _outcome(heavy, name, weights, seed)
        n = len(heavy.true.energies)
        say(
            f"{name}, seed {seed}: hydrogens at their minimum change {one.shares[BOLTZMANN]} by "
            f"{one.changes[PARTITION]}; equation 32 has {one.effective[EQUATION_32][n]:.1f} effective samples of {n:,}"
        )
    return outcomes


def _outcome(heavy: HeavyAtoms, name: str, weights: Mapping[str, Array], seed: int) -> Outcome:
    """Frames without a harmonic Z_H are left out of its row, with weights and without."""
    inside = lambda frames: MODES[name](heavy.heavy(frames)).numpy()
    n = len(heavy.true.energies)
    order = np.random.default_rng(seed).permutation(n)
    one = Outcome({}, {}, {}, int(np.isnan(weights[HARMONIC]).sum()))
    for of, log_weights in {BOLTZMANN: np.zeros(n), **weights}.items():
        kept = order[~np.isnan(log_weights[order])] if of == HARMONIC else order
        frames, more = heavy.true.rows(kept), log_weights[kept]
        one.shares[of], one.changes[of] = (by(inside(frames), more) for by in (frames.share, frames.change))
        total = frames.log_weights + more
        counts = [max(1, len(kept) // part) for part in SUBSETS]
        one.effective[of] = {n: n * effective_sample_fraction(total[:n]) for n in counts}
    one.shares[SAMPLED] = heavy.minimized.share(inside(heavy.minimized))
    return one


def _left_out(found: Mapping[str, Mapping[int, Outcome]]) -> str:
    counts = {name: ", ".join(str(one.left_out) for one in some.values()) for name, some in found.items()}
    return "; ".join(f"{name} {numbers}" for name, numbers in counts.items())


def _choices(settings: HydrogensSettings) -> list[Choice]:
    return [
        Choice("data, temperature, force field, network for hydrogens", "", "those of butane and dialanine"),
        Choice("modes", "three of butane; phi > 0 of dialanine", "gauche+ and gauche- together; 0 < phi < 150 degrees"),
        Choice("density of hydrogens", "none", f"the default flow, pre-trained for {settings.density_steps:,} steps"),
    ]


def _table(outcomes: Mapping[int, Outcome]) -> str:
    rows = []
    for seed, one in outcomes.items():
        for of, share in one.shares.items():
            changed, effective = "", ""
            if of in one.effective:
                n = max(one.effective[of])
                changed = "" if of == BOLTZMANN else str(one.changes[of])
                effective = f"{one.effective[of][n]:.1f} of {n:,}"
            rows.append((of, str(seed), str(share), changed, effective))
    return markdown_table(("estimate", "seed", "share", "change on the same frames", "effective samples"), rows)
