"""Normalizing flows with exact densities: splines, couplings, and the all-atom flow made of them."""

from boltzgen.flows.molecular import GeneratorConfig, MolecularFlow

__all__ = ["GeneratorConfig", "MolecularFlow"]
