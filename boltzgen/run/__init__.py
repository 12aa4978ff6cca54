"""The whole way from a PDB file to a free energy: what ``boltzgen run`` does, as functions."""

from boltzgen.run.options import RunOptions
from boltzgen.run.pipeline import CHECKPOINT, PreparedRun, RunResult, execute, prepare, run

__all__ = ["CHECKPOINT", "PreparedRun", "RunOptions", "RunResult", "execute", "prepare", "run"]
