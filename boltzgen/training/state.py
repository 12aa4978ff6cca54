"""The whole state of a training, as plain containers, between any two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from boltzgen.errors import CheckpointError
from boltzgen.training.cooling import Cooling

if TYPE_CHECKING:
    from boltzgen.training.loop import Training

__all__ = ["restore", "set_counts", "state_of", "total_counts"]


def state_of(training: Training) -> dict[str, Any]:
    """See `Training.state_dict`."""
    return {
        **_plan(training),
        "step": training.step,
        "seconds": training.seconds,
        "flow": _flow_state(training),
        "average": training.average.values,
        "optimizer": training.optimizer.state_dict(),
        "streams": training.shards.states(),
        "history": training.history.records,
        "events": training.history.events_state(),
        "recent": training.recent.state(),
        "cooling": _cooling_state(training),
        "watch": training.watch.state(),
        "seed": training.seed,
        "safeguard": training.safeguard.state(),
        "buffer": training.buffer.state_dict(),
        "counts": total_counts(training),
        "skipped": training.skipped,
        "losses": {name: module.state_dict() for name, module in training.loss_modules().items()},
    }


def restore(training: Training, state: Mapping[str, Any]) -> None:
    """See `Training.load_state_dict`."""
    for key, value in _plan(training).items():
        if state[key] != value:
            raise CheckpointError(f"the checkpoint was made with {key} = {state[key]}, this training has {value}")
    device = training.generator.device
    training.step, training.seconds = state["step"], state["seconds"]
    training.generator.flow.load_state_dict(state["flow"])
    training.average.load(state["average"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.shards.load(state["streams"])
    training.history.load(state["history"], state["events"])
    training.skipped = state["skipped"]
    for name, module in training.loss_modules().items():
        module.load_state_dict(state["losses"][name])
    training.recent.load(state["recent"], device)
    training.safeguard.load(state["safeguard"])
    training.buffer.load_state_dict(state["buffer"], device)
    training.watch.load(state["watch"])
    training.seed = state["seed"]
    if state["cooling"] is not None:
        stage = training.stages[state["cooling"]["stage"]]
        training.cooling = Cooling(stage, training.generator.kT, training.watch)
        training.cooling.load(state["cooling"])
    set_counts(training, state["counts"])


def total_counts(training: Training) -> dict[str, int]:
    """Evaluations of all processes."""
    counts = training.generator.potential.counts.__getstate__()
    return {name: training.processes.sum(value) for name, value in counts.items()}


def set_counts(training: Training, totals: Mapping[str, int]) -> None:
    """Leave the counts of all processes to the first."""
    counts = training.generator.potential.counts
    share = totals if training.processes.is_first else dict.fromkeys(totals, 0)
    counts.add(**{name: value - getattr(counts, name) for name, value in share.items()})


def _flow_state(training: Training) -> dict[str, Any]:
    """With the parameters that the next step goes on from, also while the averages stand in their place."""
    flow, replaced = cast(nn.Module, training.generator.flow), training.average.replaced
    state: dict[str, Any] = flow.state_dict()
    if replaced is not None:
        state |= {name: raw for (name, _), raw in zip(flow.named_parameters(), replaced, strict=True)}
    return state


def _cooling_state(training: Training) -> dict[str, Any] | None:
    if training.cooling is None:
        return None
    index = next(k for k, stage in enumerate(training.stages) if stage is training.cooling.stage)
    return {"stage": index, **training.cooling.state()}


def _plan(training: Training) -> dict[str, Any]:
    """What another training must share to go on from a state of this one."""
    return {
        "stages": [asdict(stage) for stage in training.stages],
        "batch_size": training.batch_size,
        "shards": training.shards.number,
        "capacity": training.buffer.capacity,
        "sharpness": training.buffer.sharpness,
        "basins": list(training.basins),
        "compile": training.compile,
    }
