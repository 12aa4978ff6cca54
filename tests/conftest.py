"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch

SYSTEMS = Path(__file__).resolve().parents[1] / "systems"

# The matrix products of two threads may differ in the last digit from call to call, and tests compare to the last bit.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device for tests that can use an accelerator, e.g. cuda")
    parser.addoption("--browser", action="store_true", help="draw a molecule in JupyterLab, in headless Chromium too")


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


@pytest.fixture(scope="session")
def finished_run(alanine_dipeptide_pdb, tmp_path_factory):
    """A whole `boltzgen run` on a tiny budget: exit code, folder, standard output and standard error."""
    import contextlib
    import io
    from types import SimpleNamespace

    from boltzgen.cli import main

    folder = tmp_path_factory.mktemp("runs") / "nested" / "run"
    out, err = io.StringIO(), io.StringIO()
    words = ["run", str(alanine_dipeptide_pdb), "--budget", "20000", "--seed", "1", "--out", str(folder)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return SimpleNamespace(code=code, folder=folder, out=out.getvalue(), err=err.getvalue(), words=words)
