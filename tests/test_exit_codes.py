"""Exit codes and JSON of every command: 1 after work has begun, 2 for what cannot be used."""

import errno
import json
import os
import resource

import pytest
from test_reproduce import DOUBLE_WELL

from boltzgen.cli import main
from boltzgen.commands import COMMANDS
from boltzgen.reproduce import double_well


@pytest.fixture(scope="module")
def run(finished_run):
    return str(finished_run.folder)


@pytest.fixture
def full_disk(monkeypatch):
    """Every write ends as on a full disk, where the system says so only when the file is flushed."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("name", ["run", "reproduce", *COMMANDS])
def test_every_command_prints_json_where_asked(name, capsys):
    assert main([name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "3", "--by", "phi < 0", "--out", "{tmp}/a.pdb"], {"n_frames": 3, "by": "phi < 0"}),
        (["--hydrogens", "-n", "2", "--out", "{tmp}/a.pdb"], {"n_frames": 2, "hydrogens_drawn_anew": True}),
        (["--out", "{tmp}/a.png"], {"n_frames": 1, "by": "weight", "hydrogens_drawn_anew": False}),
    ],
)
def test_view_says_what_it_wrote_as_json(words, expected, run, tmp_path, capsys):
    words = [word.format(tmp=tmp_path) for word in words]
    assert main(["view", run, *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found | expected == found
    assert found["file"] == words[-1]
    written = (tmp_path / words[-1]).read_bytes()
    if words[-1].endswith(".pdb"):
        assert sum(line.startswith(b"MODEL") for line in written.splitlines()) == found["n_frames"]


def test_profile_as_json_is_that_of_the_library(run, finished_run, dipeptide, capsys):
    from boltzgen.ensemble import Ensemble

    assert main(["profile", run, "phi", "psi", "--bins", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = Ensemble.load(finished_run.folder, dipeptide).profile("phi", "psi", bins=7)
    assert found["variables"] == ["phi", "psi"]
    assert [len(edges) for edges in found["edges"]] == [8, 8]
    for row, of_library in zip(found["probability"], expected.probability, strict=True):
        assert row == pytest.approx(list(of_library))


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "{run}", "phi", "--out", "{tmp}/a.csv"],
        ["profile", "{run}", "phi", "--out", "{tmp}/a.png"],
        ["view", "{run}", "-n", "2", "--out", "{tmp}/a.pdb"],
        ["view", "{run}", "--out", "{tmp}/a.png"],
        ["report", "{run}", "--out", "{tmp}/a.html"],
        ["setup", "{pdb}", "--forcefield", "amber96", "--out", "{tmp}/new"],
        ["reproduce", "double-well", "--seeds", "0", "--out", "{tmp}/again"],
    ],
)
def test_a_full_disk_is_a_failure_of_the_work(
    words, run, alanine_dipeptide_pdb, tmp_path, capsys, full_disk, monkeypatch
):
    monkeypatch.setitem(double_well.SETTINGS, "quick", DOUBLE_WELL)
    words = [word.format(run=run, tmp=tmp_path, pdb=alanine_dipeptide_pdb) for word in words]
    assert main(words) == 1
    errors = capsys.readouterr().err
    assert "the disk is full" in errors
    assert "defect" not in errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_during_the_samples(run, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        code = main(["sample", run, "-n", "5000", "--out", str(tmp_path / "more")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    errors = capsys.readouterr().err
    assert code == 1, errors
    assert "full" in errors or "large" in errors
    assert not (tmp_path / "more" / "samples.dcd").exists()


def test_a_file_that_cannot_be_made_is_refused_before_the_work(run, tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    assert main(["profile", run, "phi", "--out", str(tmp_path / "a.png")]) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
