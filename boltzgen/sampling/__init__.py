"""Samplers: references without a generator, and those that start from one and end at its target."""

from boltzgen.sampling.annealed_importance import annealed_importance
from boltzgen.sampling.constraints import constrained_frames
from boltzgen.sampling.domain import domain_of
from boltzgen.sampling.flattened import (
    BiasedEnergy,
    TorsionBias,
    flattened_sampling,
    learn_bias,
    torsion_angles,
)
from boltzgen.sampling.flow_chains import flow_chains
from boltzgen.sampling.hybrid_walkers import HybridWalkers
from boltzgen.sampling.langevin import BatchedLangevin, heavy_hydrogens
from boltzgen.sampling.latent_chains import latent_chains
from boltzgen.sampling.openmmtools_tempering import openmmtools_tempering
from boltzgen.sampling.parallel_tempering import ReplicaExchange, parallel_tempering
from boltzgen.sampling.particles import PartialPotential
from boltzgen.sampling.reference import Reference, ReferenceSummary, reference, shipped_reference
from boltzgen.sampling.run import SamplingRun

__all__ = [
    "BatchedLangevin",
    "BiasedEnergy",
    "HybridWalkers",
    "PartialPotential",
    "Reference",
    "ReferenceSummary",
    "ReplicaExchange",
    "SamplingRun",
    "TorsionBias",
    "annealed_importance",
    "constrained_frames",
    "domain_of",
    "flattened_sampling",
    "flow_chains",
    "heavy_hydrogens",
    "latent_chains",
    "learn_bias",
    "openmmtools_tempering",
    "parallel_tempering",
    "reference",
    "shipped_reference",
    "torsion_angles",
]
