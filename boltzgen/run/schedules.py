"""Budgets by name: how many energy evaluations a training spends, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from boltzgen.errors import BoltzgenError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.training import BATCH_SIZE, Stage, annealing_stages, refinement_stage

__all__ = ["PRESETS", "BudgetError", "Preset", "Schedule", "make_schedule", "parse_budget"]

HOT_KELVIN = 1200.0  # every basin of a peptide is in easy reach
FEWEST_EVALUATIONS = 10_000
FEWEST_OF_REFERENCE = 1_000_000
# Share of the budget that teaches a network where hydrogens go, and its batches. With "quick" a tenth left those of the
# dipeptide 0.12 kT above their minimum on average, a fifth 0.10.
PLACEMENT_SHARE, PLACEMENT_BATCH = 0.2, 256
# Evaluations of a minimisation of hydrogens, on average over a training of alanine dipeptide with CHARMM36m: 13.0 with
# a budget of 4e4, 12.1 with 2e5, 11.1 with "quick"; 16.1 in the one step that 1e4 affords with AMBER96. Heavy atoms
# clash at first; those of a reference need 10.0 (benchmarks/results/hydrogens.txt).
MINIMIZATION = 12


class BudgetError(BoltzgenError, ValueError):
    """A budget is neither a known name nor a usable number."""


@dataclass(frozen=True)
class Preset:
    """What a budget buys.

    Attributes
    ----------
    evaluations : int
        Energy evaluations of the training; the final samples come on top.
    batch_size : int
    annealing : float
        Share of the training spent hot and cooling; the rest refines at the target temperature.
    reference_evaluations : int
        Of parallel tempering, where a reference is asked for.
    config : GeneratorConfig
        Sizes of the networks.
    """

    evaluations: int
    reference_evaluations: int
    batch_size: int = BATCH_SIZE
    annealing: float = 0.6
    config: GeneratorConfig = field(default_factory=GeneratorConfig)


PRESETS = {
    "quick": Preset(evaluations=900_000, reference_evaluations=5_000_000),
    "standard": Preset(evaluations=4_000_000, reference_evaluations=50_000_000),
    "thorough": Preset(evaluations=20_000_000, reference_evaluations=500_000_000),
}


@dataclass(frozen=True)
class Schedule:
    """The stages of one training.

    Attributes
    ----------
    budget : str
        A preset's name, or the number of evaluations.
    placement_steps : int
        Of the network that places hydrogens, before the first stage; zero where there is none.
    evaluations_each : int
        Evaluations that a sample takes, on average.
    """

    budget: str
    stages: tuple[Stage, ...]
    batch_size: int
    config: GeneratorConfig
    reference_evaluations: int
    placement_steps: int = 0
    evaluations_each: int = 1

    @property
    def n_steps(self) -> int:
        return sum(stage.n_steps for stage in self.stages)

    @property
    def evaluations(self) -> int:
        """Energy evaluations of the training."""
        return self.n_steps * self.batch_size * self.evaluations_each + self.placement_steps * PLACEMENT_BATCH


def parse_budget(text: str | int) -> str | int:
    """Read a budget: the name of a preset, or a number of energy evaluations such as 200000 or 2e6.

    Raises
    ------
    BudgetError
    """
    if isinstance(text, str) and text.strip().lower() in PRESETS:
        return text.strip().lower()
    try:
        number = float(text)
    except ValueError:
        close = get_close_matches(str(text), PRESETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise BudgetError(
            f"unknown budget {text!r}: {hint}choose {', '.join(PRESETS)}, or a number of energy evaluations"
        ) from None
    if not FEWEST_EVALUATIONS <= number <= 1e12:
        raise BudgetError(f"a budget of {text} energy evaluations cannot be used: give {FEWEST_EVALUATIONS} or more")
    return int(number)


def make_schedule(budget: str | int, kelvin: float, omega: str = "trans", hydrogens: str = "flow") -> Schedule:
    """Stages for a budget at a target temperature.

    A number of evaluations is spent as the largest preset within it would (the smallest, if none is), on one step at
    the least.

    Parameters
    ----------
    budget : str or int
        As `parse_budget` returns it.
    kelvin : float
        Target temperature.
    omega : {"trans", "free"}
        How amide torsions are treated.
    hydrogens : {"flow", "network", "minimized"}
        A network takes its share of the budget, a minimisation takes some evaluations for each sample.
    """
    preset = PRESETS[budget] if isinstance(budget, str) else _nearest(budget)
    evaluations = preset.evaluations if isinstance(budget, str) else budget
    placement_steps = round(PLACEMENT_SHARE * evaluations / PLACEMENT_BATCH) if hydrogens == "network" else 0
    each = 1 + MINIMIZATION if hydrogens == "minimized" else 1
    n_steps = max((evaluations - placement_steps * PLACEMENT_BATCH) // (preset.batch_size * each), 1)
    n_annealing, heat = round(preset.annealing * n_steps), max(HOT_KELVIN / kelvin, 1.0)
    stages = (*annealing_stages(heat, n_annealing), refinement_stage(n_steps - n_annealing))
    tempering = max(round(preset.reference_evaluations * evaluations / preset.evaluations), FEWEST_OF_REFERENCE)
    config = replace(preset.config, omega=omega)
    return Schedule(str(budget), stages, preset.batch_size, config, tempering, placement_steps, each)


def _nearest(evaluations: int) -> Preset:
    within = [preset for preset in PRESETS.values() if preset.evaluations <= evaluations]
    return max(within, key=lambda preset: preset.evaluations) if within else PRESETS["quick"]
