"""What a run, or a training alone, leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzgen.progress import format_duration
from boltzgen.run.answer import format_answer

if TYPE_CHECKING:
    import numpy as np

    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.training import History

__all__ = ["RunResult", "TrainResult"]


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes
    ----------
    folder : Path
        Where its files are.
    values : dict
        As in ``result.json``.
    generator, ensemble, history :
        The trained generator, its samples, and the training.
    reference : Ensemble or (n, n) array or None
        Samples of the reference, or only its histogram over phi and psi.
    """

    folder: Path
    values: dict[str, Any]
    generator: BoltzmannGenerator
    ensemble: Ensemble
    history: History
    reference: Ensemble | np.ndarray | None

    def __str__(self) -> str:
        return f"{format_answer(self.values)}\n{'report':<16}{self.folder / 'report.html'}"


@dataclass(frozen=True)
class TrainResult:
    """What a training made.

    Attributes
    ----------
    folder : Path
        Where ``model.safetensors``, ``history.csv``, ``checkpoint.pt`` and ``manifest.json`` are.
    values : dict
        Evaluations, time, and the ESS of the last batches.
    """

    folder: Path
    values: dict[str, Any]

    def __str__(self) -> str:
        spent = f"{self.values['energy_evaluations']:,} energy evaluations"
        events = [f"{'training':<10}{one['kind']} at step {one['step']:,}" for one in self.values["training_events"]]
        return "\n".join(
            [
                f"{'model':<10}{self.folder / 'model.safetensors'}",
                f"{'spent':<10}{spent}, {format_duration(self.values['wall_seconds'])}",
                f"{'ESS':<10}{self.values['training_ess_fraction']:.1%} of the last batches; samples tell more",
                *events,
                f"{'next':<10}boltzgen sample {self.folder}",
            ]
        )
