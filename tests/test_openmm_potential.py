"""OpenMMPotential and its workers: right numbers, and failures that cost the sample that caused them."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from faulty_evaluators import EXIT_ONCE, HANG, KILL, RAISE, Faulty, cannot_be_made, dies_when_made

import boltzgen as bg
from boltzgen.energy import OpenMMPotential, Status
from boltzgen.energy.contexts import ContextEvaluator
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.energy.worker_processes import WorkerProcesses
from boltzgen.energy.workers import DONE, LOST, Batch, InThisThread, WorkerThreads
from boltzgen.errors import PotentialError

WORKERS = [{"workers": 0}, {"workers": 2, "worker_kind": "thread"}, {"workers": 2, "worker_kind": "process"}]


def _frames(molecule: bg.Molecule, n: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(perturbed_frames(molecule.positions, n, seed))


def _until(condition, seconds: float = 30.0) -> bool:
    """Wait for something; the limit is there so that a failure does not hang the tests."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # where there is no init, an orphan that has ended stays as a zombie
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.parametrize("options", WORKERS)
def test_energies_forces_and_bad_samples(dipeptide: bg.Molecule, options: dict[str, object]) -> None:
    """In order, as on the Reference platform; neighbours of bad samples are bitwise what they are alone."""
    x = _frames(dipeptide, 30)
    expected, expected_forces = reference_terms(dipeptide.system, x.numpy())
    with OpenMMPotential(dipeptide, platform="Reference", **options) as potential:
        energy, forces = potential.energy_and_forces(x)
        np.testing.assert_allclose(energy.numpy(), sum(expected.values()), rtol=1e-11, atol=1e-8)
        scale = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
        assert np.max(np.abs(forces.numpy() - expected_forces) / scale) < 1e-9
        bad = x.clone()
        bad[0, 3, 1] = torch.nan
        bad[7, 0, 0] = torch.inf
        bad[15, 4] = bad[15, 9]
        bad[29] = torch.nan
        found, found_forces = potential.energy_and_forces(bad)
        status = potential.status(bad)
        assert potential(bad[:0]).shape == (0,)
    good = torch.ones(30, dtype=torch.bool)
    good[[0, 7, 15, 29]] = False
    assert torch.equal(found[good], energy[good])
    assert torch.equal(found_forces[good], forces[good])
    assert found[[0, 7, 29]].isnan().all()
    assert found[15] == torch.inf
    assert (found_forces[~good] == 0).all()
    assert status[~good].tolist() == [Status.DEFECT, Status.DEFECT, Status.INFINITE, Status.DEFECT]
    assert (potential.counts.lost, potential.counts.defect, potential.counts.infinite) == (0, 6, 2)
    assert potential.counts.force == 60


def test_coordinates_that_are_not_finite_never_reach_openmm(
    dipeptide: bg.Molecule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    true_call = ContextEvaluator._evaluate

    def watch(self: ContextEvaluator, frame: np.ndarray, forces: bool) -> object:
        seen.append(np.isfinite(frame).all())
        return true_call(self, frame, forces)

    monkeypatch.setattr(ContextEvaluator, "_evaluate", watch)
    x = _frames(dipeptide, 4)
    x[1, 2, 0], x[3] = torch.nan, -torch.inf
    potential = OpenMMPotential(dipeptide, platform="CPU", workers=2, worker_kind="thread")
    assert potential(x).isnan().tolist() == [False, True, False, True]
    assert seen == [True, True]


def test_an_overlap_is_infinite_in_single_precision_too(dipeptide: bg.Molecule) -> None:
    """(r = 1e-4 nm) to the power of -12 exceeds float32, and opposite infinities make a NaN; neither is a defect."""
    x = _frames(dipeptide, 3)
    x[1, 4] = x[1, 17] + torch.tensor([1e-4, 0.0, 0.0])
    potential = OpenMMPotential(dipeptide, platform="CPU")
    found = potential(x.float())
    assert found[[0, 2]].isfinite().all()
    assert found[1] > 1e30
    assert potential.counts.defect == potential.counts.lost == 0


def test_the_energy_is_evaluated_without_forces_unless_they_are_needed(
    dipeptide: bg.Molecule, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    true_call = ContextEvaluator._evaluate
    potential = OpenMMPotential(dipeptide, platform="Reference")

    def watch(self: ContextEvaluator, frame: np.ndarray, forces: bool) -> object:
        wanted.append(forces)
        return true_call(self, frame, forces)

    monkeypatch.setattr(ContextEvaluator, "_evaluate", watch)
    x = _frames(dipeptide, 1)
    potential(x)
    potential(x.requires_grad_()).sum().backward()
    assert wanted == [False, True]
    torch.testing.assert_close(x.grad, -potential.energy_and_forces(x)[1], rtol=0, atol=0)


def test_terms_are_those_of_the_original_system(dipeptide: bg.Molecule) -> None:
    x = _frames(dipeptide, 3)
    x[1, 0, 0] = torch.nan
    expected, _ = reference_terms(dipeptide.system, x[[0, 2]].numpy())
    terms = OpenMMPotential(dipeptide, platform="Reference").terms(x)
    assert set(terms) == set(expected)
    for name, value in terms.items():
        np.testing.assert_allclose(value[[0, 2]], expected[name], rtol=1e-12, atol=1e-9, err_msg=name)
        assert value[1].isnan()


def test_auto_takes_the_fastest_platform_and_says_so(dipeptide: bg.Molecule) -> None:
    potential = OpenMMPotential(dipeptide)
    choice = potential.platform_choice
    available = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    assert set(choice.seconds) | set(choice.refused) == set(available)
    assert potential.platform == min(choice.seconds, key=choice.seconds.__getitem__)
    report = potential.report()
    assert all(name in report for name in available)
    assert "CMAP grids" in report


def test_a_platform_with_wrong_energies_is_not_taken(dipeptide: bg.Molecule, monkeypatch: pytest.MonkeyPatch) -> None:
    true_call = ContextEvaluator._evaluate

    def wrong(self: ContextEvaluator, frame: np.ndarray, forces: bool) -> tuple[float, object]:
        energy, found = true_call(self, frame, forces)
        return (energy if self._settings.platform == "Reference" else energy + 10), found

    monkeypatch.setattr(ContextEvaluator, "_evaluate", wrong)
    choice = OpenMMPotential(dipeptide).platform_choice
    assert choice.name == "Reference"
    assert "CPU" in choice.refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platform": "TPU"}, "no platform 'TPU'"),
        ({"precision": "half"}, "precision"),
        ({"worker_kind": "fork"}, "worker_kind"),
        ({"workers": -1}, "workers"),
    ],
)
def test_options_that_make_no_sense(dipeptide: bg.Molecule, options: dict[str, object], message: str) -> None:
    with pytest.raises(PotentialError, match=message):
        OpenMMPotential(dipeptide, **options)


def test_pickling_copying_closing(dipeptide: bg.Molecule) -> None:
    x = _frames(dipeptide, 6)
    potential = OpenMMPotential(dipeptide, platform="Reference", workers=1)
    expected = potential(x)
    pool = potential._pool
    assert isinstance(pool, WorkerProcesses)
    (pid,), memory = pool.process_ids, pool._memory[0].name
    for other in (pickle.loads(pickle.dumps(potential)), copy.deepcopy(potential)):
        assert other.counts == potential.counts
        assert other._pool is None
        other._workers = 0
        assert torch.equal(other(x), expected)
        assert other.counts.energy == 12
    potential.close()
    assert not _alive(pid)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name=memory)
    potential._workers = 0
    assert torch.equal(potential(x), expected)


def _marked(n: int, **marks: float) -> Batch:
    """Random samples, some of them marked: row_5=KILL."""
    frames = np.random.default_rng(0).normal(size=(n, 3, 3))
    for row, mark in marks.items():
        frames[int(row.removeprefix("row_")), 0, 0] = mark
    return Batch.of(frames, forces=True)


def _assert_done(batch: Batch, except_rows: tuple[int, ...] = ()) -> None:
    done = np.ones(len(batch), dtype=bool)
    done[list(except_rows)] = False
    assert (batch.state[done] == DONE).all()
    assert (batch.state[~done] == LOST).all()
    assert batch.forces is not None
    np.testing.assert_array_equal(batch.energies[done], (batch.positions[done] ** 2).sum(axis=(1, 2)))
    np.testing.assert_array_equal(batch.forces[done], -2 * batch.positions[done])


@pytest.mark.parametrize("kind", [InThisThread, WorkerThreads])
def test_an_exception_costs_one_sample(kind: type, tmp_path: Path) -> None:
    pool = kind(Faulty(str(tmp_path)), *([2] if kind is WorkerThreads else []))
    batch = _marked(40, row_0=RAISE, row_39=RAISE)
    assert "no such thing" in pool.evaluate(batch)
    _assert_done(batch, (0, 39))
    pool.close()
    again = _marked(3)
    assert pool.evaluate(again) == ""
    _assert_done(again)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory):
    """Two worker processes with a harmonic energy; each test finds them as the one before left them."""
    folder = tmp_path_factory.mktemp("marks")
    pool = WorkerProcesses(Faulty(str(folder), seconds=0.005), 2, n_atoms=3, timeout=2.0)
    yield pool
    pool.close()


def test_workers_that_die_or_hang_cost_the_culprits_alone(pool: WorkerProcesses) -> None:
    """Crash on a sample each time; exit on a sample once; hang; exceptions; all in one batch."""
    batch = _marked(60, row_0=EXIT_ONCE, row_12=KILL, row_13=RAISE, row_59=HANG)
    assert pool.evaluate(batch)
    _assert_done(batch, (12, 13, 59))
    assert len(pool.process_ids) <= 2


def test_workers_killed_from_outside_cost_nothing(pool: WorkerProcesses) -> None:
    """In the middle of a call, and between two calls; Ctrl-C, which a terminal sends to all, does not end them."""
    pool.evaluate(_marked(40))
    killed = []

    def harm() -> None:
        _until(lambda: any(worker.task is not None for worker in pool._workers))
        os.kill(pool.process_ids[1], signal.SIGINT)
        killed.append(pool.process_ids[0])
        os.kill(killed[0], signal.SIGKILL)

    before = pool.process_ids
    thread = threading.Thread(target=harm)
    thread.start()
    batch = _marked(400)
    assert pool.evaluate(batch) == ""
    thread.join()
    _assert_done(batch)
    assert set(before) - set(killed) <= set(pool.process_ids)
    os.kill(pool.process_ids[0], signal.SIGKILL)
    again = _marked(20)
    assert pool.evaluate(again) == ""
    _assert_done(again)
    starting = pool.process_ids  # one of them was not needed any more when it was ready
    pool.evaluate(_marked(20))
    assert pool.process_ids == starting


def test_batches_larger_than_the_shared_memory(pool: WorkerProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts that reuse the same rows; the arrays of the workers keep their full size."""
    monkeypatch.setattr(pool, "_rows_at_a_time", 7)
    batch = _marked(30)
    assert pool.evaluate(batch) == ""
    _assert_done(batch)


def test_interrupted_processes_are_ended(pool: WorkerProcesses) -> None:
    pool.evaluate(_marked(40))

    def interrupt() -> None:
        _until(lambda: any(worker.task is not None for worker in pool._workers))
        os.kill(os.getpid(), signal.SIGINT)

    before = pool.process_ids
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool.evaluate(_marked(100_000))
    thread.join()
    assert all(worker.task is None for worker in pool._workers)
    assert not any(_alive(pid) for pid in before if pid not in pool.process_ids)
    batch = _marked(20)
    assert pool.evaluate(batch) == ""
    _assert_done(batch)


def test_interrupted_threads_stop(tmp_path: Path) -> None:
    threads = WorkerThreads(Faulty(str(tmp_path), seconds=0.005), 2)

    def interrupt() -> None:
        _until(lambda: any(tmp_path.iterdir()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    batch = _marked(100_000)
    with pytest.raises(KeyboardInterrupt):
        threads.evaluate(batch)
    thread.join()
    again = _marked(20)
    assert threads.evaluate(again) == ""
    _assert_done(again)
    threads.close()  # waits for the threads
    assert (batch.state == DONE).sum() < 1000


@pytest.mark.parametrize(
    ("factory", "message"), [(cannot_be_made, "no memory on the device"), (dies_when_made, "do not start")]
)
def test_workers_that_cannot_start_are_an_error(factory, message: str) -> None:
    pool = WorkerProcesses(factory, 1, n_atoms=3, timeout=1.0)
    with pytest.raises(PotentialError, match=message):
        pool.evaluate(_marked(3))
    pool.close()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Even if it is killed, and in the middle of the work."""
    script = (
        "import sys; sys.path.insert(0, {tests!r})\n"
        "from test_openmm_potential import Faulty, WorkerProcesses, _marked\n"
        "if __name__ == '__main__':\n"
        "    WorkerProcesses(Faulty({folder!r}, 0.005), 1, 3, 60.0).evaluate(_marked(100_000))\n"
    ).format(tests=str(Path(__file__).parent), folder=str(tmp_path / "begun"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")])
    try:
        assert _until(lambda: any((tmp_path / "begun").iterdir()))
        (worker,) = (int(path.name) for path in (tmp_path / "begun").iterdir())
        assert _alive(worker)
    finally:
        parent.kill()
        parent.wait()
    assert _until(lambda: not _alive(worker))
