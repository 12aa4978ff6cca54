"""Trainings shared by processes: two give the same curve as one with the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training_parts import harmonic_generator

from boltzgen.training import Stage, Training
from boltzgen.training.processes import start_processes

STAGES = [
    Stage("hot", "reverse-kl", 20, 3.0, 3.0, 1e-2),
    Stage("cooling", "l2+", 60, 3.0, 1.0, 1e-2, replay=0.25, ess_bound=0.5),
    Stage("balance", "trajectory-balance", 20, 1.0, 1.0, 1e-2),
]


def train(shards):
    """The curve of a training of a harmonic well, and where its parameters end."""
    processes = start_processes()
    generator = harmonic_generator()
    generator.flow.double()  # the order of sums is all that differs: what it does grows through 100 steps of Adam
    training = Training(
        generator,
        STAGES,
        batch_size=128,
        shards=shards,
        record_every=5,
        basins={"right": lambda x: x[:, 0, 0] > 0},
    )
    history = training.run()
    table = {name: column.tolist() for name, column in history.table().items() if name not in ("seconds", "stage")}
    parameters = torch.cat([p.detach().flatten() for p in training.generator.flow.parameters()]).tolist()
    return {"rank": processes.rank, "table": table, "parameters": parameters}


def torchrun(*words):
    """Run a program in two processes, as ``torchrun --nproc-per-node 2`` does."""
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=tests.parent, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes found, as torchrun starts them."""
    folder = tmp_path_factory.mktemp("processes")
    done = torchrun(__file__, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one_with_the_same_batch(results):
    alone = train(shards=2)
    for found in results:
        assert found["parameters"] == pytest.approx(alone["parameters"], rel=1e-6, abs=1e-8)
        for name, column in alone["table"].items():
            assert found["table"][name] == pytest.approx(column, rel=1e-6, abs=1e-8), name


def test_all_processes_end_with_the_same_parameters(results):
    assert results[0]["parameters"] == results[1]["parameters"]
    assert results[0]["table"]["ess_fraction"] == results[1]["table"]["ess_fraction"]


def test_evaluations_are_counted_over_all_processes(results):
    expected = sum(stage.n_steps * stage.n_fresh(128) for stage in STAGES)
    assert results[0]["table"]["energy_evaluations"][-1] == expected


def test_the_batch_is_not_the_same_with_other_shards():
    assert train(shards=1)["parameters"] != train(shards=2)["parameters"]


def test_no_thread_of_the_group_outlives_it(tmp_path):
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc to count native threads")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch, torch.distributed as dist\n"
        "from boltzgen.training.processes import start_processes\n"
        "start_processes().sum(1)\n"
        "import torch._dynamo\n"
        "import torch.distributed.nn.functional\n"
        "names = lambda: [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "assert any('gloo' in name for name in names())\n"
        "dist.destroy_process_group()\n"
        "assert not any('gloo' in name for name in names()), names()\n"
    )
    done = torchrun(str(program))
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_shared_by_processes_gives_one_answer(tmp_path):
    out = tmp_path / "run"
    words = ["-m", "boltzgen", "run", "systems/alanine_dipeptide.pdb", "--budget", "20000", "--out", str(out)]
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("verdict") == 1
    result = json.loads((out / "result.json").read_text())
    set_up = result["energy_evaluations"] - 26 * 768 - 100_000  # beyond the steps and the samples of the answer
    assert 0 < set_up < 1000  # the harmonic approximation, by each process
    resumed = torchrun(*words, "--resume")
    assert "going on from step 26 of 26" in resumed.stdout
    assert (
        abs(json.loads((out / "result.json").read_text())["energy_evaluations"] - result["energy_evaluations"]) < 1000
    )


if __name__ == "__main__":
    found = train(shards=2)
    Path(sys.argv[1], f"{found['rank']}.json").write_text(json.dumps(found))
