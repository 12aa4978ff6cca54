"""The command line: one whole run whose numbers are computed again from its files, and every kind of bad input."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import mdtraj
import numpy as np
import pytest
import torch

from boltzgen.cli import main
from boltzgen.diagnostics import effective_sample_fraction, pareto_k
from boltzgen.generator import BoltzmannGenerator
from boltzgen.run.schedules import PRESETS, make_schedule

FILES = {
    "checkpoint.pt",
    "history.csv",
    "manifest.json",
    "model.safetensors",
    "report.html",
    "result.json",
    "samples.dcd",
    "topology.pdb",
    "weights.npz",
}
ESTIMATE = {
    "expression",
    "probability",
    "delta_f_kT",
    "delta_f_kT_low",
    "delta_f_kT_high",
    "delta_f_kJ_per_mol",
    "delta_f_kcal_per_mol",
}


def strict_json(path):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def result(finished_run):
    return strict_json(finished_run.folder / "result.json")


@pytest.fixture(scope="module")
def samples(finished_run):
    arrays = np.load(finished_run.folder / "weights.npz", allow_pickle=False)
    frames = mdtraj.load(str(finished_run.folder / "samples.dcd"), top=str(finished_run.folder / "topology.pdb"))
    return frames, arrays


def test_run_writes_every_file_and_nothing_else(finished_run):
    assert finished_run.code == 0, finished_run.err
    assert {path.name for path in finished_run.folder.iterdir()} == FILES


def test_run_prints_the_answer(finished_run, result):
    assert "ΔF(C7ax)" in finished_run.out
    assert f"{result['free_energies']['C7ax']['delta_f_kT']:.2f} ±" in finished_run.out
    assert result["verdict"] in finished_run.out
    assert str(finished_run.folder / "report.html") in finished_run.out
    assert "100%" in finished_run.err  # progress, as lines where there is no terminal
    assert "Warning" not in finished_run.err


def test_result_has_the_stable_keys(result):
    for key in ("n_samples", "ess_fraction", "pareto_k", "log_z", "energy_evaluations", "force_evaluations"):
        assert isinstance(result[key], int | float), key
    assert result["n_samples"] == 100_000
    assert 0 < result["ess_fraction"] <= 1
    assert result["wall_seconds"] > 0
    assert result["verdict"] == "do not use"  # 20,000 evaluations train nothing
    assert set(result["free_energies"]["C7ax"]) == ESTIMATE


def test_result_follows_from_the_files(result, samples):
    frames, arrays = samples
    log_weights = arrays["log_weights"]
    assert len(frames) == len(log_weights) == result["n_samples"]
    assert effective_sample_fraction(log_weights) == pytest.approx(result["ess_fraction"])
    assert pareto_k(log_weights) == pytest.approx(result["pareto_k"])
    largest = log_weights.max()
    assert largest + math.log(np.exp(log_weights - largest).mean()) == pytest.approx(result["log_z"])
    weights = np.exp(log_weights - largest)
    phi = np.degrees(mdtraj.compute_phi(frames)[1][:, 0])
    share = weights[(phi > 0) & (phi < 150)].sum() / weights.sum()
    basin = result["free_energies"]["C7ax"]
    # DCD holds ångström in single precision: a frame at the edge of the basin may change sides.
    assert basin["probability"] == pytest.approx(share, rel=1e-3)
    assert basin["delta_f_kT"] == pytest.approx(-math.log(share / (1 - share)), abs=1e-3)
    kT = 8.31446261815324e-3 * 300
    assert basin["delta_f_kJ_per_mol"] == pytest.approx(basin["delta_f_kT"] * kT)
    assert basin["delta_f_kcal_per_mol"] == pytest.approx(basin["delta_f_kT"] * kT / 4.184)
    assert basin["delta_f_kT_low"] < basin["delta_f_kT"] < basin["delta_f_kT_high"]


def test_energies_are_those_of_openmm(result, samples):
    assert result["openmm_recheck"]["n"] == result["recheck_evaluations"] == 1000
    # Both in double precision; an untrained generator has samples of 1e6 kJ/mol and more among them.
    assert result["openmm_recheck"]["max_abs_difference_kJ_per_mol"] < 1e-4
    arrays = samples[1]
    kT = 8.31446261815324e-3 * 300
    again = -arrays["energies_kJ_per_mol"] / kT - arrays["log_q"]
    assert np.allclose(again, arrays["log_weights"], rtol=1e-12)


def test_every_evaluation_is_counted(result):
    schedule = make_schedule(20_000, 300.0)
    hot = schedule.stages[0].n_steps * schedule.batch_size
    charted = 2 * (3 * 22 - 6)  # the gradients of the harmonic approximation
    compared = 3 * 2 * 16  # three methyl groups, before and after relabelling
    assert result["energy_evaluations"] == schedule.evaluations + charted + compared + result["n_samples"]
    assert result["force_evaluations"] == hot + charted


def test_saved_model_gives_the_densities_of_the_samples(finished_run, samples):
    frames, arrays = samples
    generator = BoltzmannGenerator.load(finished_run.folder / "model.safetensors")
    with torch.no_grad():
        log_q = generator.log_prob(torch.from_numpy(frames.xyz[:500].copy()))
    # Single precision through DCD's ångström and back; the densities themselves spread over tens.
    assert np.abs(log_q.numpy() - arrays["log_q"][:500]).max() < 0.02


def test_user_names_are_kept(alanine_dipeptide_pdb, samples):
    ours = mdtraj.load(str(alanine_dipeptide_pdb))
    names = [(atom.residue.name, atom.name) for atom in ours.topology.atoms]
    assert [(atom.residue.name, atom.name) for atom in samples[0].topology.atoms] == names


def test_manifest_records_what_was_used(finished_run, result):
    manifest = strict_json(finished_run.folder / "manifest.json")
    assert manifest["command"][:2] == ["boltzgen", "run"]
    assert manifest["generator"]["seed"] == 1
    assert manifest["energy_evaluations"] == result["energy_evaluations"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["molecule"]["force_field"]["files"] == ["charmm36_2024.xml"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((finished_run.folder / name).read_bytes()).hexdigest() == digest
    assert {"samples.dcd", "model.safetensors", "weights.npz"} <= set(manifest["files"])


def test_report_is_one_file(finished_run, result):
    page = (finished_run.folder / "report.html").read_text()
    assert result["verdict"] in page
    assert 'src="http' not in page


def one_error(capsys) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("boltzgen: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--forcefield", "charm36m"], ["charm36m", "charmm36m"]),
        (["--solvent", "water"], ["water", "obc2"]),
        (["--budget", "standart"], ["standart", "standard"]),
        (["--budget", "10"], ["10"]),
        (["--temperature", "-5"], ["positive"]),
        (["--temperature", "nan"], ["temperature"]),
        (["--seed", "-1"], ["seed"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--omega", "cis"], ["omega"]),
        (["--coordinates", "cartesain"], ["cartesain", "cartesian"]),
        (["--hydrogens", "rigid"], ["rigid", "network"]),
        (["--hydrogens", "network", "--reference"], ["exp(-U(h(x_C))/kT)", "with_placed_hydrogens"]),
        (["--basin", "0 < phi < 150"], ["C7ax: 0 < phi < 150"]),
        (["--basin", "A: phi > 0", "--basin", "A: phi < 0"], ["'A'"]),
        (["--basin", "A: 0 < fi < 150"], ["fi", "phi", "column"]),
        (["--basin", "A: __import__('os')"], ["A"]),
        (["--basin", "A: phi > 200"], ["nothing"]),
        (["--variant", "HIS5"], ["RES=STATE"]),
        (["--frobnicate"], ["frobnicate", "--help"]),
        (["--resume"], ["checkpoint"]),
    ],
)
def test_bad_option_is_one_line_and_leaves_nothing(options, words, alanine_dipeptide_pdb, tmp_path, capsys):
    out = tmp_path / "a" / "b"
    fast = [] if "--forcefield" in options else ["--forcefield", "amber96"]
    code = main(["run", str(alanine_dipeptide_pdb), *fast, "--budget", "20000", "--out", str(out), *options])
    assert code == 2
    message = one_error(capsys)
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "missing.pdb"),
        ("", "molecule.pdb"),
        ("<html>not found</html>\n", "molecule.pdb"),
        ("HETATM    1 ZN    ZN A   1       0.000   0.000   0.000  1.00  0.00          ZN\nEND\n", "ZN"),
    ],
)
def test_bad_structure_is_one_line_and_leaves_nothing(content, word, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "molecule.pdb").write_text(content)
    code = main(["run", "missing.pdb" if content is None else "molecule.pdb", "--forcefield", "amber96"])
    assert code == 2
    assert word in one_error(capsys)
    assert {path.name for path in tmp_path.iterdir()} <= {"molecule.pdb"}


def test_missing_structure_argument(capsys):
    assert main(["run"]) == 2
    assert "PDB" in one_error(capsys)


def test_folder_in_use_is_refused(alanine_dipeptide_pdb, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["run", str(alanine_dipeptide_pdb), "--out", str(tmp_path)]) == 2
    assert "not empty" in one_error(capsys)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert main(["run", str(alanine_dipeptide_pdb), "--out", str(tmp_path / "thesis.tex")]) == 2
    assert "is a file" in one_error(capsys)
    assert main(["run", str(alanine_dipeptide_pdb), "--out", str(tmp_path / "thesis.tex" / "run")]) == 2
    assert "is a file" in one_error(capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused(alanine_dipeptide_pdb, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["run", str(alanine_dipeptide_pdb), "--out", str(tmp_path / "run")]) == 2
    assert "permission" in one_error(capsys)


def test_finished_folder_is_refused_without_resume(finished_run, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished_run.folder.iterdir()}
    assert main(finished_run.words) == 2
    assert "--resume" in one_error(capsys)
    assert {path.name: path.stat().st_mtime_ns for path in finished_run.folder.iterdir()} == before


def test_unexpected_error_keeps_its_traceback(alanine_dipeptide_pdb, tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("boltzgen.run.pipeline.read_molecule", broken)
    assert main(["run", str(alanine_dipeptide_pdb), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: a defect" in error
    assert "defect of boltzgen" in error
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("boltzgen ")
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--forcefield", "--solvent", "--temperature", "--budget", "--basin", "--ph", "--reference"):
        assert option in text
    for option in ("--device", "--seed", "--out", "--resume", "--omega", "--variant", "--coordinates", "--hydrogens"):
        assert option in text
    assert "exit codes" in text
    assert main([]) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(alanine_dipeptide_pdb, tmp_path):
    folder = tmp_path / "run"
    words = [str(alanine_dipeptide_pdb), "--forcefield", "amber96", "--budget", "2e6", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "boltzgen", "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:
            if line.startswith("training on"):
                break
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert f"--out {folder} --resume" in error
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_budgets_keep_their_promise():
    assert PRESETS["quick"].evaluations + 100_000 <= 1_000_000
    assert PRESETS["standard"].evaluations + 100_000 < 5_000_000
    for name, preset in PRESETS.items():
        schedule = make_schedule(name, 300.0)
        assert schedule.evaluations <= preset.evaluations
        assert schedule.stages[0].heat(0) == pytest.approx(4.0)
        assert schedule.stages[-1].heat(0) == 1.0
    assert make_schedule("quick", 2000.0).stages[0].heat(0) == 1.0
