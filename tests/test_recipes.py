"""Recipes: a closed schema, and the command line over it."""

import dataclasses
from pathlib import Path

import pytest

from boltzgen import cli
from boltzgen.commands.inputs import run_values
from boltzgen.run.options import OptionError, RunOptions
from boltzgen.run.recipes import KEYS, read_recipe

SYSTEMS = Path(__file__).resolve().parent.parent / "systems"


def options_of(*words):
    """The options that ``boltzgen run`` would run with."""
    return RunOptions(**run_values(cli._parser().parse_args(["run", *words])))


@pytest.mark.parametrize("recipe", sorted(SYSTEMS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_complete(recipe):
    options = options_of(str(recipe))
    assert options.pdb.is_file()
    assert options.basins


def test_the_command_line_comes_over_the_recipe():
    recipe = str(SYSTEMS / "ace_ala3_nme.toml")
    assert options_of(recipe).solvent == "obc2"
    changed = options_of(recipe, "--solvent", "HCT", "--seed", "3", "--basin", "A: 0 < phi[1] < 90")
    assert (changed.solvent, changed.seed, changed.basins) == ("hct", 3, {"A": "0 < phi[1] < 90"})
    assert changed.budget == options_of(recipe).budget == 20_000_000


def test_defaults_are_those_of_the_options():
    assert options_of("molecule.pdb") == RunOptions("molecule.pdb")


def test_every_key_is_an_option():
    assert set(KEYS) <= {field.name for field in dataclasses.fields(RunOptions)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('pdb = "a.pdb"\ntemprature = 300', "unknown key 'temprature'; did you mean 'temperature'?"),
        ('pdb = "a.pdb"\nzzz = 1', "unknown key 'zzz'; known are pdb, forcefield"),
        ("seed = 1", "the key 'pdb' is missing"),
        ('pdb = "a.pdb"\nseed = "one"', "seed = 'one' must be a whole number"),
        ('pdb = "a.pdb"\nseed = true', "seed = True must be a whole number"),
        ('pdb = "a.pdb"\ntemperature = "hot"', "temperature = 'hot' must be a number"),
        ('pdb = "a.pdb"\nbudget = 1.5', "budget = 1.5 must be a whole number or text"),
        ('pdb = "a.pdb"\n[basins]\nA = 1', "basins.A = 1 must be text"),
        ("pdb = ", "no valid TOML"),
        ('pdb = "a\\u0000.pdb"', "holds a NUL character"),
    ],
)
def test_bad_recipes_say_what_to_do(tmp_path, text, said):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError) as error:
        read_recipe(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed = -3", "a seed is a whole number from 0"),
        ("seed = 99999999999999999999", "a seed is a whole number from 0"),
        ("n_samples = 0", "at least one sample"),
        ('omega = "maybe"', "choose trans or free"),
        ('basins = {"" = "0 < phi < 150"}', "needs a name"),
    ],
)
def test_values_that_cannot_be_are_named_before_the_training(tmp_path, capsys, line, said):
    path = tmp_path / "recipe.toml"
    path.write_text(f"pdb = '{SYSTEMS / 'alanine_dipeptide.pdb'}'\n{line}\n")
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_a_windows_editor_is_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbfpdb = "a.pdb"\r\nseed = 3\r\n')
    assert read_recipe(path) == {"pdb": tmp_path / "a.pdb", "seed": 3}


def test_a_recipe_that_is_not_there_is_one_line(capsys):
    assert cli.main(["run", "nothing.toml"]) == 2
    assert capsys.readouterr().err.strip() == "boltzgen: error: nothing.toml: cannot be read: No such file or directory"
