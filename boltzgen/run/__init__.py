"""The whole way from a PDB file to a free energy: what ``boltzgen run`` does, as functions."""

from boltzgen.run.options import RunOptions
from boltzgen.run.pipeline import CHECKPOINT, PreparedRun, execute, prepare, run, train
from boltzgen.run.results import RunResult, TrainResult

__all__ = ["CHECKPOINT", "PreparedRun", "RunOptions", "RunResult", "TrainResult", "execute", "prepare", "run", "train"]
