"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SYSTEMS = Path(__file__).resolve().parents[1] / "systems"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device for tests that can use an accelerator, e.g. cuda")


@pytest.fixture(scope="session")
def alanine_dipeptide_pdb() -> Path:
    return SYSTEMS / "alanine_dipeptide.pdb"
