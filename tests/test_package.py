"""Importing the package: silent, light, and every public name is there."""

import subprocess
import sys
from pathlib import Path

import boltzgen


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_is_silent_and_light():
    heavy = "torch openmm openmmtools mdtraj matplotlib nglview scipy"
    done = python(f"import boltzgen, sys; print([m for m in '{heavy}'.split() if m in sys.modules])")
    assert done.returncode == 0
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_working_names_import_silently():
    names = "bg.Molecule, bg.BoltzmannGenerator, bg.anneal, bg.finetune, bg.Ensemble, bg.energy.potential"
    heavy = "openmmtools mdtraj matplotlib nglview"
    done = python(
        f"import boltzgen as bg, sys; {names}, bg.sampling, bg.free_energy\n"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_public_name_is_there():
    for name in boltzgen.__all__:
        assert getattr(boltzgen, name) is not None, name
    assert set(boltzgen.__all__) <= set(dir(boltzgen))
    assert not hasattr(boltzgen, "no_such_name")


def test_command_and_module_are_the_same():
    done = subprocess.run([sys.executable, "-m", "boltzgen", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["boltzgen", boltzgen.__version__]
    assert done.returncode == 0


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py works in a checkout and is missing from an installed wheel."""
    root = Path(boltzgen.__file__).parent
    for module in root.rglob("*.py"):
        assert (module.parent / "__init__.py").exists(), module
