"""Boltzmann generators for molecules: from a PDB file to free energies with honest error bars."""

__version__ = "0.1.0"
