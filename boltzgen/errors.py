"""Exceptions. Each also inherits a builtin kind, so that callers may catch either."""

__all__ = [
    "BoltzgenError",
    "CheckpointError",
    "EstimateError",
    "ForceFieldError",
    "OutputError",
    "PotentialError",
    "SelectionError",
    "StructureError",
]


class BoltzgenError(Exception):
    """Base of every error that boltzgen raises on purpose; its message names the thing and the remedy."""


class StructureError(BoltzgenError, ValueError):
    """The structure file or the molecule in it cannot be used as it stands."""


class ForceFieldError(BoltzgenError, ValueError):
    """The force field does not know something in the molecule, or a term of it was lost."""


class SelectionError(BoltzgenError, ValueError):
    """A basin or collective-variable expression does not parse, or selects nothing."""


class EstimateError(BoltzgenError, ValueError):
    """These samples cannot give the estimate, or the kind of interval, that was asked for."""


class PotentialError(BoltzgenError, ValueError):
    """A System cannot be compiled, an engine failed, or positions have the wrong shape."""


class CheckpointError(BoltzgenError, ValueError):
    """A saved model or training state is unreadable, or belongs to something else."""


class OutputError(BoltzgenError, OSError):
    """An output folder or file cannot be written."""
