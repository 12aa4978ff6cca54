"""Commands on a finished run: their numbers are those of the library, and bad input is one line."""

import json
import shutil
import subprocess
import sys

import mdtraj
import numpy as np
import pytest
from signals import interrupted_when_asked

from boltzgen.cli import main
from boltzgen.ensemble import Ensemble

BASIN = "C7ax: 0 < phi < 150"


@pytest.fixture(scope="module")
def run(finished_run):
    return str(finished_run.folder)


@pytest.fixture(scope="module")
def ensemble(run, dipeptide):
    return Ensemble.load(run, dipeptide)


def test_free_energy_of_a_run(run, ensemble, capsys):
    assert main(["free-energy", run, "--basin", BASIN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = ensemble.free_energy({"C7ax": "0 < phi < 150"})["C7ax"]
    assert found["free_energies"]["C7ax"]["delta_f_kT"] == pytest.approx(expected.value)
    assert found["n_samples"] == len(ensemble)
    assert main(["free-energy", run, "--basin", BASIN]) == 0
    assert "ΔF(C7ax)" in capsys.readouterr().out


def test_free_energy_at_another_temperature(run, ensemble, capsys):
    assert main(["free-energy", run, "--basin", BASIN, "--temperature", "330", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    hot = ensemble.at_temperature(330)
    assert found["kT_kJ_per_mol"] == pytest.approx(hot.kT)
    assert found["ess_fraction"] == pytest.approx(hot.ess_fraction)
    assert found["ess_fraction"] != pytest.approx(ensemble.ess_fraction)


def test_json_is_alone_on_standard_output(run):
    """The reader of trajectories prints from C, past Python."""
    words = [sys.executable, "-m", "boltzgen", "free-energy", run, "--basin", BASIN, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["free_energies"]["C7ax"]["expression"] == "0 < phi < 150"


def test_profile_as_text_table_and_picture(run, ensemble, tmp_path, capsys):
    expected = ensemble.profile("phi", bins=12)
    assert main(["profile", run, "phi", "--bins", "12", "--out", str(tmp_path / "phi.csv")]) == 0
    table = np.genfromtxt(tmp_path / "phi.csv", delimiter=",", skip_header=1)
    np.testing.assert_allclose(table[:, 0], expected.centres[0])
    np.testing.assert_allclose(table[:, 1], expected.free_energy, rtol=1e-6)
    assert main(["profile", run, "phi", "psi", "--out", str(tmp_path / "map.png")]) == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["profile", run, "phi", "--bins", "12"]) == 0
    assert capsys.readouterr().out.count(" kT\n") == 12


def test_frames_of_a_basin(run, ensemble, tmp_path):
    path = tmp_path / "frames.pdb"
    assert main(["view", run, "--by", "phi < 0", "-n", "7", "--out", str(path)]) == 0
    frames = mdtraj.load(str(path))
    assert frames.n_frames == 7
    assert (mdtraj.compute_phi(frames)[1] < 0).all()
    assert main(["view", run, "--out", str(tmp_path / "one.png")]) == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["frames.pdb", "one.png"]


def test_more_samples_are_a_run_again(run, tmp_path, capsys):
    out = tmp_path / "more"
    assert main(["sample", run, "-n", "500", "--seed", "3", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_samples"] == found["energy_evaluations"] == 500
    assert main(["free-energy", str(out), "--basin", BASIN, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["n_samples"] == 500
    assert again["ess_fraction"] == pytest.approx(found["ess_fraction"])
    assert main(["sample", run, "-n", "500", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_ctrl_c_ends_the_drawing_with_what_there_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("boltzgen.interrupts.Interrupts", interrupted_when_asked(4))
    monkeypatch.setattr("boltzgen.generator.SAMPLE_BLOCK", 64)
    out = tmp_path / "part"
    assert main(["sample", run, "-n", "500", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_samples"] == found["energy_evaluations"] == 3 * 64
    assert found["ended_early"] is True
    assert main(["free-energy", str(out), "--basin", BASIN]) == 0
    monkeypatch.setattr("boltzgen.interrupts.Interrupts", interrupted_when_asked(1))  # before anything is drawn
    assert main(["sample", run, "-n", "500", "--out", str(tmp_path / "none")]) == 130
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["free-energy", "{tmp}", "--basin", BASIN], "holds no model.safetensors"),
        (["free-energy", "{run}", "--basin", "0 < phi"], "write a name and an expression"),
        (["free-energy", "{run}", "--basin", "A: 0 < phx"], "unknown name 'phx'"),
        (["free-energy", "{run}", "--basin", BASIN, "--basin", BASIN], "two basins are called"),
        (["profile", "{run}", "phi", "psi", "rg"], "one or two variables, not 3"),
        (["profile", "{run}", "phi", "--out", "phi.xls"], "must end in .png or"),
        (["view", "{run}", "--out", "{tmp}/none/a.pdb"], "there is no folder"),
        (["view", "{run}", "-n", "0"], "at least one frame"),
        (["sample", "{run}", "-n", "0.5"], "no positive whole number"),
        (["sample", "{run}", "-n", "inf"], "no positive whole number"),
        (["sample", "{run}", "--seed", "-1"], "a seed is a whole number"),
        (["sample", "{run}", "--device", "gpu", "--out", "{tmp}/out"], "unknown device 'gpu'"),
        (["view", "{run}", "--seed", "-1"], "a seed is a whole number"),
        (["view", "{run}", "--out", "/proc/frames.pdb"], "cannot be written"),
        (["free-energy", "{run}", "--basin", BASIN, "--temperature", "inf"], "not a finite number"),
        (["sample", "{tmp}/nothing"], "holds no model.safetensors"),
    ],
)
def test_bad_input_is_one_line(words, said, run, tmp_path, capsys):
    assert main([word.format(run=run, tmp=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert error.startswith("boltzgen: error:")
    assert not list(tmp_path.iterdir())


def truncated(content):
    return content[: len(content) // 2]


def emptied(content):
    return b""


def overwritten(content):
    return content[:3000] + bytes(400) + content[3400:]


@pytest.mark.parametrize("damage", [truncated, emptied, overwritten])
@pytest.mark.parametrize("name", ["weights.npz", "samples.dcd", "topology.pdb"])
def test_a_damaged_run_is_one_line(damage, name, run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "a run")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    code = main(["free-energy", str(folder), "--basin", BASIN])
    error = capsys.readouterr().err
    assert "defect" not in error
    if name == "weights.npz" or damage is emptied:
        assert code == 2
        assert error.startswith("boltzgen: error:")


def test_weights_that_are_missing_or_undefined_are_named(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    stored = dict(np.load(folder / "weights.npz"))
    for wrong, said in ((None, "no list of log-weights"), (stored["log_weights"] * np.nan, "finite log-weight")):
        kept = {name: value for name, value in stored.items() if name != "log_weights"}
        np.savez(folder / "weights.npz", **kept, **({} if wrong is None else {"log_weights": wrong}))
        assert main(["free-energy", str(folder), "--basin", BASIN]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("kT", [0.0, -1.0, np.nan])
def test_a_temperature_that_cannot_be_is_named(kT, run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    np.savez(folder / "weights.npz", **dict(np.load(folder / "weights.npz")) | {"kT": np.array(kT)})
    assert main(["free-energy", str(folder), "--basin", BASIN]) == 2
    assert f"weights.npz has kT = {kT:g} kJ/mol" in capsys.readouterr().err


def test_reading_in_two_threads_leaves_standard_output(run):
    """Once, each thread took the silence of the other for the output to restore."""
    program = (
        "import sys, threading, boltzgen\n"
        "read = lambda: [boltzgen.Ensemble.load(sys.argv[1]) for _ in range(20)]\n"
        "threads = [threading.Thread(target=read) for _ in range(4)]\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
        "print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, run], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "still here"
