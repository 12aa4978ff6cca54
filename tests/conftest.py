"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SYSTEMS = Path(__file__).resolve().parents[1] / "systems"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device for tests that can use an accelerator, e.g. cuda")


@pytest.fixture(scope="session")
def alanine_dipeptide_pdb() -> Path:
    return SYSTEMS / "alanine_dipeptide.pdb"


@pytest.fixture(scope="session")
def dipeptide(alanine_dipeptide_pdb):
    """Alanine dipeptide with CHARMM36m, in vacuum, at 300 K."""
    from boltzgen.molecule import Molecule

    return Molecule.from_pdb(alanine_dipeptide_pdb)


@pytest.fixture(scope="session")
def potential(dipeptide):
    """Its compiled potential."""
    from boltzgen.energy import CompiledPotential

    return CompiledPotential(dipeptide)


@pytest.fixture(scope="session")
def generator(dipeptide, potential):
    """An untrained generator; tests must not change it."""
    from boltzgen.generator import BoltzmannGenerator

    return BoltzmannGenerator.for_molecule(dipeptide, potential, seed=0)
