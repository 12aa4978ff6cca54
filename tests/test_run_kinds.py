"""Runs with other kinds of generators: what they say of their target, what they leave open, what they refuse."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from signals import interrupted_when_asked

import boltzgen as bg
from boltzgen.diagnostics import Coverage, Verdict
from boltzgen.errors import BoltzgenError
from boltzgen.free_energy import log_z
from boltzgen.interrupts import Interrupts, RunInterrupted
from boltzgen.model_file import load_generator
from boltzgen.placement import PlacementAccuracy
from boltzgen.run import RunOptions, execute, prepare, run
from boltzgen.run import pipeline as run_module
from boltzgen.run.answer import ONE_BASIN, UNCHECKED, Recheck, final_verdict
from boltzgen.run.checkpoints import load_checkpoint
from boltzgen.run.comparison import Comparison
from boltzgen.run.schedules import MINIMIZATION, PLACEMENT_BATCH, make_schedule

GOOD = Recheck(1000, 1e-9, "Reference")
OTHER = "exp(-U(h(x_C))/kT) on the heavy atoms"


@pytest.fixture(scope="module")
def options(alanine_dipeptide_pdb):
    return RunOptions(alanine_dipeptide_pdb, "amber96", budget=10_000, seed=1, n_samples=512)


@pytest.fixture(scope="module")
def network_run(options, tmp_path_factory):
    said = []
    out = tmp_path_factory.mktemp("network") / "run"
    return run(replace(options, hydrogens="network", out=out), said.append), said


def test_a_network_says_its_target_everywhere(network_run):
    result, said = network_run
    values = json.loads((result.folder / "result.json").read_text())
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert (values["coordinates"], values["hydrogens"]) == ("internal", "network")
    assert (manifest["generator"]["coordinates"], manifest["generator"]["hydrogens"]) == ("internal", "network")
    texts = [values["target"], values["verdict_reason"], manifest["generator"]["target"], str(result)]
    assert all(OTHER in text for text in [*texts, (result.folder / "report.html").read_text()])
    assert any(OTHER in text for text in said)
    assert "of the molecule" in str(result)
    assert "Boltzmann distribution within the domain" not in (result.folder / "report.html").read_text()
    assert values["log_z_unit"] == "nm^24"  # ten heavy atoms


def test_the_network_is_trained_before_the_heavy_atoms(network_run, options):
    result, said = network_run
    # the comparison with minimised hydrogens is among them
    assert result.values["energy_evaluations"] == result.generator.potential.counts.energy
    schedule = make_schedule(10_000, 300.0, hydrogens="network")
    assert schedule.placement_steps > 0
    assert schedule.evaluations <= 10_000
    order = [next(i for i, text in enumerate(said) if words in text) for words in ("the placement", "training on")]
    assert order == sorted(order)
    assert result.values["force_evaluations"] > schedule.placement_steps * PLACEMENT_BATCH
    untrained = bg.BoltzmannGenerator.for_molecule(
        result.ensemble.molecule, result.generator.potential, hydrogens="network", seed=options.seed
    )
    pairs = zip(
        result.generator.flow.hydrogens.parameters(), untrained.flow.hydrogens.parameters(), strict=True
    )  # the averaged weights too, which a training starts with
    assert all(not torch.equal(a, b) for a, b in pairs)
    assert result.values["placement"]["mean_excess"] > 0
    assert 1000 * result.values["placement"]["rms_nm"] == pytest.approx(
        float(str(result).split(" pm from it")[0].split()[-1]), abs=0.01
    )


def test_a_network_run_goes_on_as_if_never_stopped(network_run, options, tmp_path, monkeypatch):
    n_placement = make_schedule(10_000, 300.0, hydrogens="network").placement_steps

    again = replace(options, hydrogens="network", out=tmp_path / "run")
    monkeypatch.setattr(run_module, "Interrupts", interrupted_when_asked(n_placement + 3, signal.SIGTERM))
    with pytest.raises(RunInterrupted):
        execute(prepare(again))
    monkeypatch.setattr(run_module, "Interrupts", Interrupts)
    result = execute(prepare(replace(again, resume=True)))
    whole = load_generator(network_run[0].folder / "model.safetensors")
    for name, value in whole.flow.state_dict().items():
        assert torch.equal(value, result.generator.flow.state_dict()[name]), name
    assert result.values["energy_evaluations"] == network_run[0].values["energy_evaluations"]
    with pytest.raises(BoltzgenError, match="hydrogens is network there and flow here"):
        prepare(replace(again, hydrogens="flow", resume=True))


def test_a_network_run_goes_on_in_the_middle_of_the_placement(network_run, options, tmp_path, monkeypatch):
    """To the last bit what an unbroken run gives, interrupted before the heavy atoms took a step."""

    again = replace(options, hydrogens="network", out=tmp_path / "run")
    n_steps = make_schedule(10_000, 300.0, hydrogens="network").placement_steps
    monkeypatch.setattr(run_module, "Interrupts", interrupted_when_asked(7))
    with pytest.raises(RunInterrupted):
        execute(prepare(again))
    stored = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert stored.step == 0
    assert stored.placement["step"] == 6 < n_steps
    monkeypatch.setattr(run_module, "Interrupts", Interrupts)
    said = []
    result = execute(prepare(replace(again, resume=True)), said.append)
    left = (n_steps - 6) * PLACEMENT_BATCH
    assert f"training the placement of hydrogens: {left:,} energy evaluations" in said
    whole = load_generator(network_run[0].folder / "model.safetensors")
    for name, value in whole.flow.state_dict().items():
        assert torch.equal(value, result.generator.flow.state_dict()[name]), name
    assert result.values["energy_evaluations"] == network_run[0].values["energy_evaluations"]
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").placement["step"] == n_steps


def test_minimisation_is_paid_from_the_budget(options, tmp_path):
    """What was spent, not what was planned.

    The first steps need more than the mean over a training, for the heavy atoms clash then: a fifth more is allowed.
    """
    options = replace(options, forcefield="charmm36m", budget=40_000, hydrogens="minimized", n_samples=64)
    result = run(replace(options, out=tmp_path / "run"))
    schedule = make_schedule(40_000, 300.0, hydrogens="minimized")
    assert schedule.evaluations <= 40_000
    planned = schedule.evaluations + 64 * (1 + MINIMIZATION)
    assert result.values["energy_evaluations"] == pytest.approx(planned, rel=0.2)
    assert result.values["energy_evaluations"] == result.generator.potential.counts.energy
    assert result.values["hydrogens"] == "minimized"
    assert OTHER in str(result)
    assert result.values["placement"] is None


def test_cartesian_coordinates_alone_are_not_to_be_used(options, tmp_path):
    said = []
    result = run(replace(options, coordinates="cartesian", out=tmp_path / "run"), said.append)
    assert result.values["verdict"] == "do not use"
    assert ONE_BASIN in result.values["verdict_reason"]
    assert any("--reference" in text for text in said)
    arrays = np.load(result.folder / "weights.npz")
    # the alignment penalty is no part of the answer
    found = log_z(arrays["log_weights"] - arrays["log_rigid_integral"])
    assert result.values["log_z"] == pytest.approx(found.value, abs=1e-9)
    assert load_generator(result.folder / "model.safetensors").kinds == {
        "coordinates": "cartesian",
        "hydrogens": "flow",
    }


def test_a_reference_can_clear_a_cartesian_generator(generator):
    generated = replace(generator.sample(2000), log_weights=np.zeros(2000))
    free_energies = generated.free_energy({"C7ax": "0 < phi < 150"})
    covered = {name: Coverage(0.9, 1.0, 1000) for name in ("C7ax", "not C7ax")}
    comparison = Comparison(
        generated, "draws", 0.0, 0.0, free_energies, covered, 0.9, 0.0, Verdict(UNCHECKED, "on itself")
    )
    judge = lambda found: final_verdict(generated, free_energies, found, {}, GOOD, starts_in_one_basin=True).verdict
    assert judge(comparison) == "usable"
    assert judge(replace(comparison, coverages=covered | {"C7ax": Coverage(0.01, 0.02, 1000)})) == "do not use"
    assert judge(None) == "do not use"
    assert final_verdict(generated, free_energies, None, {}, GOOD).verdict == UNCHECKED


def test_badly_placed_hydrogens_and_other_targets_in_the_verdict(generator):
    ensemble = replace(generator.sample(2000), log_weights=np.zeros(2000))
    free_energies = ensemble.free_energy({"C7ax": "0 < phi < 150"})
    inside = bg.parse_basin("0 < phi < 150", ensemble.molecule).contains(ensemble.positions)
    far = replace(ensemble, log_weights=np.where(inside, 3.0, 0.0)).free_energy({"C7ax": "0 < phi < 150"})["C7ax"]
    judge = lambda made, placement=None: final_verdict(
        made, free_energies, None, {"C7ax": far}, GOOD, placement=placement
    )
    assert judge(ensemble).verdict == "do not use"
    # the shipped reference is of all atoms and says nothing about another target
    other = replace(ensemble, target="exp(-U(h))")
    assert judge(other).verdict == UNCHECKED
    assert judge(other).reason.endswith("populations are those of exp(-U(h))")
    accuracy = PlacementAccuracy(1000, 0, 0.002, 0.02, 0.01, 1.0, 2.494)
    assert judge(other, accuracy).verdict == UNCHECKED
    for excess in (0.5, math.nan):
        judged = judge(other, replace(accuracy, mean_excess=excess))
        assert judged.verdict == "do not use"
        assert "--budget" in judged.reason
