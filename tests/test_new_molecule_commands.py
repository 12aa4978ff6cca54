"""Commands on a structure (setup, train, reference, bench), and the report of a run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import openmm
import pytest
from openmm import app
from signals import interrupted_when_asked

from boltzgen.checkpoint_file import read_checkpoint
from boltzgen.cli import main
from boltzgen.commands import COMMANDS
from boltzgen.ensemble import Ensemble
from boltzgen.errors import OutputError
from boltzgen.generator import SAMPLE_BLOCK, BoltzmannGenerator
from boltzgen.run.files import drawn, read_history

FAST = ["--forcefield", "amber96"]


@pytest.fixture(scope="module")
def pdb(alanine_dipeptide_pdb):
    return str(alanine_dipeptide_pdb)


def answer(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["run", *COMMANDS])
def test_help_has_examples_and_exit_codes(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"boltzgen {name} " in text.split("examples:")[1]
    assert "exit codes:" in text


def test_setup_says_and_writes_what_a_run_would_use(pdb, tmp_path, capsys):
    assert main(["setup", pdb, *FAST, "--out", str(tmp_path / "new"), "--json"]) == 0
    found = answer(capsys)
    assert (found["n_atoms"], found["n_heavy_atoms"], found["engine"]) == (22, 10, "compiled")
    assert set(found["torsions"]) >= {"phi", "psi"}
    assert "chiral" in found["domain"].lower()
    structure = app.PDBFile(str(tmp_path / "new" / "structure.pdb"))
    system = openmm.XmlSerializer.deserialize((tmp_path / "new" / "system.xml").read_text())
    assert structure.topology.getNumAtoms() == system.getNumParticles() == 22
    assert main(["setup", pdb, *FAST]) == 0
    said = capsys.readouterr().out
    assert "amber96" in said
    assert "phi" in said


def test_a_training_is_gone_on_with_by_run(pdb, tmp_path, capsys):
    words = [pdb, *FAST, "--budget", "10000", "--out", str(tmp_path / "run"), "--json"]
    assert main(["train", *words]) == 0
    found = answer(capsys)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"model.safetensors", "history.csv", "manifest.json", "checkpoint.pt"}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["energy_evaluations"] == found["energy_evaluations"] > 9000
    recipe = tmp_path / "recipe.toml"
    shutil.copy(pdb, tmp_path / "a.pdb")
    recipe.write_text('pdb = "a.pdb"\nforcefield = "amber96"\nbudget = 10000\nn_samples = 2000\n')
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--resume", "--json"]) == 0
    whole = answer(capsys)
    assert whole["energy_evaluations"] == found["energy_evaluations"] + 2000
    assert whole["folder"] == str(tmp_path / "run")
    assert whole == json.loads((tmp_path / "run" / "result.json").read_text()) | {"folder": whole["folder"]}
    assert whole["reference_ended_early"] is whole["samples_ended_early"] is False


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_reference_of_a_run_compares_with_it(finished_run, tmp_path, capsys, monkeypatch):
    """Interrupted in the burn-in, and gone on with by the same command."""
    out, state = tmp_path / "reference", tmp_path / "state.pt"
    words = ["reference", str(finished_run.folder), "--budget", "500000", "--out", str(out)]
    words += ["--checkpoint", str(state), "--json"]
    with monkeypatch.context() as patched:
        patched.setattr("boltzgen.interrupts.Interrupts", interrupted_when_asked(2))
        assert main(words) == 130
    assert "go on with the same command" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [state]
    assert main([*words, "--seed", "1"]) == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert main(words) == 0
    found = answer(capsys)
    assert found == json.loads((out / "reference.json").read_text())
    assert set(found["coverage"]) == {"C7ax", "not C7ax"}
    assert found["energy_evaluations"] > 490_000
    assert read_checkpoint(state).content["done"] == 9
    assert found["ended_early"] is False
    molecule = BoltzmannGenerator.load(finished_run.folder / "model.safetensors").molecule
    frames = Ensemble.load(out, molecule)
    assert frames.kind == "chain"
    assert len(frames) == found["n_samples"]
    page = tmp_path / "page.html"
    words = ["report", str(finished_run.folder), "--reference", str(out), "--out", str(page)]
    assert main(words) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text().count("data:image") >= (finished_run.folder / "report.html").read_text().count("data:image")


def test_report_again_has_the_numbers_of_the_run(finished_run, tmp_path, capsys):
    before = (finished_run.folder / "result.json").read_bytes()
    assert main(["report", str(finished_run.folder), "--json"]) == 0
    assert answer(capsys) == json.loads(before)
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    verdict = json.loads(before)["verdict"]
    assert verdict in (folder / "report.html").read_text()
    (folder / "history.csv").write_text("step,loss\nsecond,0\n")
    with pytest.raises(OutputError, match="no history"):
        read_history(folder / "history.csv", [])
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    assert "history.csv is no history of a training" in capsys.readouterr().err
    (folder / "result.json").unlink()
    assert main(["report", str(folder)]) == 2
    assert "is the run finished?" in capsys.readouterr().err


def test_bench_times_this_machine(pdb, capsys):
    assert main(["bench", pdb, *FAST, "--seconds", "0.01", "--json"]) == 0
    found = answer(capsys)
    times = found["microseconds"]
    assert all(value > 0 for value in times.values())
    assert times["energy"] < times["training step"]
    hours = found["training_hours"]
    assert hours["thorough"] == pytest.approx(5 * hours["standard"])


def test_samples_in_blocks_are_those_of_one_call(generator):
    state = generator.rng.get_state()
    whole = generator.sample(SAMPLE_BLOCK + 100)
    generator.rng.set_state(state)
    parts = drawn(generator, SAMPLE_BLOCK + 100)
    generator.rng.set_state(state)
    np.testing.assert_array_equal(parts.positions, whole.positions)
    np.testing.assert_allclose(parts.log_weights, whole.log_weights, rtol=1e-12)
    assert parts.n_infinite == whole.n_infinite


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["setup", "{tmp}/none.pdb"], "none.pdb"),
        (["setup", "{pdb}", "--forcefield", "amber97"], "amber97"),
        (["train", "{pdb}", "--budget", "much"], "unknown budget 'much'"),
        (["reference", "{pdb}", "--budget", "1000"], "at least 500,000"),
        (["reference", "{pdb}", "--forcefield", "amber96", "--basin", "A: phi >"], "phi >"),
        (["reference", "{tmp}"], "holds no model.safetensors"),
        (["report", "{tmp}/none"], "there is no folder"),
        (["bench", "{pdb}", "--seconds", "0"], "above 0"),
        (["view", "{run}", "--hydrogens", "-n", "0", "--out", "{tmp}/a.pdb"], "at least one frame"),
    ],
)
def test_bad_input_is_one_line(words, said, pdb, finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([word.format(pdb=pdb, tmp=tmp_path, run=finished_run.folder) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert error.startswith("boltzgen: error:")
    assert not list(tmp_path.iterdir())


def test_hydrogens_of_a_frame_as_a_file(finished_run, tmp_path):
    import mdtraj

    path = tmp_path / "hydrogens.pdb"
    assert main(["view", str(finished_run.folder), "--hydrogens", "-n", "5", "--out", str(path)]) == 0
    frames = mdtraj.load(str(path))
    heavy = [atom.index for atom in frames.topology.atoms if atom.element.symbol != "H"]
    assert frames.n_frames == 5
    assert np.ptp(frames.xyz[:, heavy], axis=0).max() < 2e-3  # a PDB file has three decimals in ångström


def test_a_reader_that_stops_early_is_no_defect(finished_run):
    done = subprocess.run(
        f"{sys.executable} -m boltzgen profile {finished_run.folder} phi | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "defect" not in done.stderr
    assert done.stdout.startswith("profile of phi")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_to_a_full_disk_is_no_defect(finished_run):
    for options in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            words = [sys.executable, "-m", "boltzgen", "profile", str(finished_run.folder), "phi", *options]
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == "boltzgen: error: the output cannot be written: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_reference_early_with_what_it_has(finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("boltzgen.interrupts.Interrupts", interrupted_when_asked(7))
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "reference"
    assert main(["reference", str(finished_run.folder), "--budget", "500000", "--out", str(out)]) == 0
    # six of nine rounds of a hundred steps
    assert "ended early, after 600 steps of each walker" in capsys.readouterr().out
    found = json.loads((out / "reference.json").read_text())
    assert found["ended_early"] is True
    assert set(found["coverage"]) == {"C7ax", "not C7ax"}
    molecule = BoltzmannGenerator.load(finished_run.folder / "model.safetensors").molecule
    frames = Ensemble.load(out, molecule)
    assert len(frames) == found["n_samples"]
    assert len(np.unique(frames.groups)) > 32  # most ladders left a frame inside the domain
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_before_the_first_frame_of_a_reference_leaves_nothing(pdb, tmp_path):
    out = tmp_path / "reference"
    words = [pdb, *FAST, "--budget", "5e6", "--out", str(out), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    code = (
        "import sys, boltzgen.progress as p; p.LINE_SECONDS = 0.0\n"
        "from boltzgen.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "reference", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        for line in process.stderr:
            if "parallel tempering" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate(timeout=120)
    finally:
        process.kill()
    # Before the first frame that counts there is nothing to keep: the folder is not made.
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert not out.exists()
    assert not printed
