"""Reference samplers: parallel tempering, and sampling under a flattening bias."""

from boltzgen.sampling.flattened import (
    BiasedEnergy,
    TorsionBias,
    flattened_sampling,
    heavy_hydrogens,
    learn_bias,
    torsion_angles,
)
from boltzgen.sampling.langevin import BatchedLangevin
from boltzgen.sampling.parallel_tempering import ReplicaExchange, parallel_tempering
from boltzgen.sampling.run import SamplingRun

__all__ = [
    "BatchedLangevin",
    "BiasedEnergy",
    "ReplicaExchange",
    "SamplingRun",
    "TorsionBias",
    "flattened_sampling",
    "heavy_hydrogens",
    "learn_bias",
    "parallel_tempering",
    "torsion_angles",
]
