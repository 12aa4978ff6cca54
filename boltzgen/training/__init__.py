"""Training on the energy alone."""

from boltzgen.training.exploration import Exploration, explore
from boltzgen.training.history import Event, History
from boltzgen.training.loop import CAP_ABOVE_MEDIAN, MAX_GRADIENT_NORM, Training, soft_cap
from boltzgen.training.processes import SharingError, start_processes
from boltzgen.training.recipes import anneal, finetune
from boltzgen.training.replay import ReplayBuffer
from boltzgen.training.safeguard import TrainingDivergedError
from boltzgen.training.stages import BATCH_SIZE, Stage, annealing_stages, refinement_stage

__all__ = [
    "BATCH_SIZE",
    "CAP_ABOVE_MEDIAN",
    "MAX_GRADIENT_NORM",
    "Event",
    "Exploration",
    "History",
    "ReplayBuffer",
    "SharingError",
    "Stage",
    "Training",
    "TrainingDivergedError",
    "anneal",
    "annealing_stages",
    "explore",
    "finetune",
    "refinement_stage",
    "soft_cap",
    "start_processes",
]
