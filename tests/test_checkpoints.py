"""Checkpoints: going on is the same as never having stopped; everything that does not belong is refused."""

import errno
import os
import pickle
import resource
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from signals import interrupted_when_asked

from boltzgen.errors import CheckpointError, OutputError
from boltzgen.interrupts import Interrupts, RunInterrupted
from boltzgen.model_file import load_generator
from boltzgen.output_files import OutputFolder, write_bytes, write_json
from boltzgen.run import RunOptions, execute, prepare, references
from boltzgen.run import pipeline as run_module
from boltzgen.run.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from boltzgen.run.schedules import make_schedule
from boltzgen.training import Stage, Training


@pytest.fixture
def options(finished_run, alanine_dipeptide_pdb, tmp_path):
    """The options of the finished run, for another folder."""
    return RunOptions(alanine_dipeptide_pdb, budget=20_000, seed=1, out=tmp_path / "run", n_samples=4096)


@pytest.fixture
def resumable(finished_run, options):
    """A folder that holds the checkpoint of the finished run, and options to go on from it."""
    options.folder.mkdir()
    shutil.copy(finished_run.folder / "checkpoint.pt", options.folder)
    return replace(options, resume=True)


def parameters(generator):
    return {name: value.clone() for name, value in generator.flow.state_dict().items()}


def test_interrupted_and_resumed_is_the_same_to_the_last_bit(options, finished_run, monkeypatch):
    monkeypatch.setattr(run_module, "Interrupts", interrupted_when_asked(7, signal.SIGTERM))
    with pytest.raises(RunInterrupted) as stop:
        execute(prepare(options))
    assert stop.value.signal_number == signal.SIGTERM
    assert [path.name for path in options.folder.iterdir()] == ["checkpoint.pt"]
    checkpoint = load_checkpoint(stop.value.checkpoint)
    assert checkpoint.step in (6, 7)
    assert checkpoint.step < make_schedule(options.budget, options.temperature).n_steps

    monkeypatch.setattr(run_module, "Interrupts", Interrupts)
    result = execute(prepare(replace(options, resume=True)))
    whole = load_generator(finished_run.folder / "model.safetensors")
    for name, value in parameters(result.generator).items():
        assert torch.equal(value, whole.flow.state_dict()[name]), name
    log_q = np.load(finished_run.folder / "weights.npz")["log_q"][:4096]
    assert np.array_equal(result.ensemble.log_q, log_q)
    evaluations = load_checkpoint(finished_run.folder / "checkpoint.pt").training["counts"]
    assert result.values["energy_evaluations"] == evaluations["energy"] + 4096
    assert result.values["force_evaluations"] == evaluations["force"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, ["seed is 1 there and 2 here"]),
        ({"budget": 30_000}, ["budget is 20000 there and 30000 here"]),
        ({"temperature": 310.0}, ["temperature is 300 K there and 310 K here"]),
        ({"forcefield": "amber96"}, ["force field is charmm36m there and amber96 here"]),
    ],
)
def test_another_run_is_refused_with_the_difference(resumable, change, words):
    with pytest.raises(CheckpointError) as error:
        prepare(replace(resumable, **change))
    assert all(word in str(error.value) for word in words), error.value
    assert [path.name for path in resumable.folder.iterdir()] == ["checkpoint.pt"]


def test_full_disk_leaves_a_usable_checkpoint(resumable):
    prepared = prepare(replace(resumable, n_samples=100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (resumable.folder / "checkpoint.pt").stat().st_size + 100_000
    assert room < 100_000 * 3 * (4 * 22 + 8)  # the trajectory must not fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=r"full|large"):
            execute(prepared)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = {path.name for path in resumable.folder.iterdir()}
    assert not names & {"samples.dcd", "result.json", "manifest.json", "report.html"}
    assert not [name for name in names if "part" in name]
    assert load_checkpoint(resumable.folder / "checkpoint.pt").step == prepared.training.n_steps


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "pickle", "bomb", "other", "version"])
def test_damaged_or_foreign_files_are_refused(finished_run, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    good = (finished_run.folder / "checkpoint.pt").read_bytes()
    content = {"empty": b"", "text": b"not a checkpoint", "truncated": good[: len(good) // 2]}
    if kind in content:
        path.write_bytes(content[kind])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "bomb":
        torch.save({"format": "boltzgen training", "bomb": Bomb()}, path)
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "version":
        torch.save({"format": "boltzgen training", "format_version": 99, "boltzgen_version": "9.0"}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_other_stages_are_refused(generator, finished_run, tmp_path):
    training = Training(generator, [Stage("hot", "reverse-kl", 1)])
    with pytest.raises(CheckpointError, match=r"stages"):
        load_checkpoint(finished_run.folder / "checkpoint.pt").restore(training)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, generator):
    path = tmp_path / "checkpoint.pt"
    training = Training(generator, [Stage("hot", "reverse-kl", 1)])
    save_checkpoint(path, training, {"seed": 0})
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        save_checkpoint(path, training, {"seed": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(path).identity == {"seed": 0}


def test_second_signal_stops_at_once():
    previous = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_json_never_holds_nan(tmp_path):
    path = write_json(tmp_path / "a.json", {"x": float("nan"), "y": [np.float64("inf"), 1.5], "z": {"w": -np.inf}})
    assert "".join(path.read_text().split()) == '{"x":null,"y":[null,1.5],"z":{"w":null}}'


def test_folder_is_removed_only_while_empty(tmp_path):
    folder = OutputFolder(tmp_path / "a" / "b")
    folder.claim()
    folder.release()
    assert list(tmp_path.iterdir()) == []
    folder.claim()
    write_bytes(folder / "x", b"1")
    folder.release()
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"1"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_samples_are_drawn_answers_with_those_that_there_are(resumable, monkeypatch):
    monkeypatch.setattr(run_module, "Interrupts", interrupted_when_asked(5))
    monkeypatch.setattr("boltzgen.generator.SAMPLE_BLOCK", 64)
    said = []
    result = execute(prepare(replace(resumable, n_samples=640)), said.append)
    drawn = len(result.ensemble)
    assert drawn in (192, 256)
    assert result.values["n_samples"] == drawn
    assert result.values["samples_ended_early"] is True
    assert f"the drawing was ended early, after {drawn} of 640 samples" in said


def test_the_state_of_a_reference_that_does_not_fit_is_thrown_away(finished_run, tmp_path, caplog):
    """It must not block the answer of a run: damaged, or left by another version or device."""
    generator = load_generator(finished_run.folder / "model.safetensors")
    schedule = replace(make_schedule(20_000, 300.0), reference_evaluations=500_000)
    state = tmp_path / "reference.pt"
    state.write_bytes(b"damaged")
    first = references.parallel_tempering(generator, schedule, 0, checkpoint=state)
    assert "the reference begins anew" in caplog.text
    again = references.parallel_tempering(generator, schedule, 0, checkpoint=state)
    assert np.array_equal(first.ensemble.positions, again.ensemble.positions)
    assert again.evaluations == first.evaluations


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (1, 2, "1 there and 2 here"),
        ("1", 1, "'1' there and 1 here"),
        (
            f"Sampling({'n=1, ' * 20}seed=3, last=4)",
            f"Sampling({'n=1, ' * 20}seed=5, last=4)",
            "…seed=3, last=4) there",
        ),
        ("/a/long/path/" * 5 + "system_a.pdb", "/a/long/path/" * 5 + "system_b.pdb", "system_a.pdb there"),
        ("x" * 50, "x" * 50 + "y" * 50, f"{'x' * 20} there"),
    ],
)
def test_what_differs_in_long_values_is_shown(there, here, said, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", {"value": there, "gone": None}, "", {}, {})
    with pytest.raises(CheckpointError) as error:
        checkpoint.check({"value": here})
    assert said in str(error.value)
    shown_there, shown_here = str(error.value).split("value is ")[1].removesuffix(" here").split(" there and ")
    assert shown_there != shown_here
    checkpoint.check({"value": there})


def test_what_only_the_checkpoint_has_is_a_difference(tmp_path):
    with pytest.raises(CheckpointError, match="kept is 1 there and None here"):
        Checkpoint(tmp_path / "c.pt", {"value": 0, "kept": 1}, "", {}, {}).check({"value": 0})
