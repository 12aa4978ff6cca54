"""Exploration: torsion states are found where they are, and a hot run finds what one structure does not show."""

import os

import numpy as np
import pytest
from signals import interrupted_when_asked

from boltzgen import BoltzmannGenerator, Ensemble, Molecule, anneal
from boltzgen.collective_variables import parse_basin
from boltzgen.training.exploration import _arcs, _state_of, exploration_of, explore, torsion_basins


@pytest.fixture(scope="module")
def molecule():
    return Molecule.from_pdb("systems/alanine_dipeptide.pdb")


def normal(centre, width, n, seed):
    return (np.random.default_rng(seed).normal(centre, width, n) + 180) % 360 - 180


def test_valleys_lie_between_the_states():
    angles = np.concatenate([normal(-80, 20, 5000, 0), normal(60, 10, 300, 1)])
    (first, second) = _arcs(angles)
    assert all(low < high and -180 <= (low + high) / 2 < 180 for low, high in (first, second))
    assert sum(high - low for low, high in (first, second)) == pytest.approx(360)
    states = _state_of(np.array([-80.0, 60.0, -100.0, 70.0]), [first, second])
    assert states[0] == states[2] != states[1] == states[3]


def test_a_state_may_wrap_round():
    angles = np.concatenate([normal(180, 20, 3000, 0), normal(0, 20, 3000, 1)])
    arcs = _arcs(angles)
    states = _state_of(np.array([179.0, -179.0, 5.0]), arcs)
    assert len(arcs) == 2
    assert states[0] == states[1] != states[2]


@pytest.mark.parametrize(
    "angles", [normal(20, 30, 3000, 0), normal(-63, 8, 3000, 0), np.random.default_rng(0).uniform(-180, 180, 200_000)]
)
def test_one_state_has_no_arcs(angles):
    assert _arcs(angles) == []


@pytest.fixture(scope="module")
def hot_run(molecule):
    return explore(molecule, budget=256_000, seed=0)


def test_a_hot_run_finds_the_basins_of_alanine_dipeptide(molecule, hot_run):
    seen = hot_run
    assert seen.evaluations >= 256_000
    assert "1200 K" in seen.how
    positive = [name for name, expression in seen.basins.items() if _holds(molecule, expression, phi=60, psi=-60)]
    negative = [name for name, expression in seen.basins.items() if _holds(molecule, expression, phi=-80, psi=70)]
    assert positive
    assert negative
    assert positive != negative
    assert sum(seen.shares.values()) == pytest.approx(1, abs=0.05)
    assert seen.missed({negative[0]: 0.9}) == [name for name in seen.basins if name != negative[0]]


def _holds(molecule, expression, **degrees):
    """Whether torsions lie within an expression of arcs."""
    for part in expression.split(" and "):
        low, name, high = (word.strip() for word in part.split("<"))
        if (degrees[name] - float(low)) % 360 > float(high) - float(low):
            return False
    return True


def test_configurations_that_are_given_define_their_basins(molecule):
    from boltzgen.sampling import shipped_reference

    assert shipped_reference(molecule) is not None
    with np.load("benchmarks/results/reference_ace_ala_nme_charmm36m_vacuum_300K.npz") as stored:
        positions = stored["positions"]
    found = torsion_basins(positions, molecule)
    members = np.stack([parse_basin(text, molecule).contains(positions) for text in found.values()])
    assert (members.sum(0) <= 1).all()  # arcs do not overlap
    assert members.any(0).mean() > 0.97
    seen = exploration_of(positions, molecule)
    assert list(seen.basins) == list(found)
    assert exploration_of(seen, molecule) is seen


def test_annealing_from_a_hot_run_says_what_it_looked_for_and_found(molecule, hot_run):
    generator = BoltzmannGenerator.for_molecule(molecule)
    budget = hot_run.evaluations + 20_000
    history = anneal(generator, budget=budget, start=hot_run, batch_size=256, replay=0.25)
    (start,), (end,) = history.happened("start"), history.happened("basins")
    assert "256 walkers at 1200 K" in start.message
    assert "phi" in end.message
    assert set(history.records[-1]["populations"]) == {
        line.split(":")[0].strip() for line in end.message.splitlines()[1:]
    }
    assert history.records[-1]["temperature"] == pytest.approx(300)


def test_a_start_may_be_of_another_temperature_and_target(molecule):
    """It is a place to begin with: a generator with fixed hydrogens takes hot configurations of all atoms."""
    generator = BoltzmannGenerator.for_molecule(molecule, hydrogens="network", seed=0)
    positions = generator.sample_and_log_prob(64)[0].numpy()
    hot = Ensemble(positions, np.zeros(64), kT=4 * molecule.kT, molecule=molecule)
    history = anneal(generator, budget=256, start=hot, batch_size=64)
    assert any("64 configurations that were given" in event.message for event in history.events)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_during_the_first_fit_ends_the_annealing(molecule, monkeypatch):
    generator = BoltzmannGenerator.for_molecule(molecule, seed=0)
    frames = generator.sample_and_log_prob(64)[0].numpy()
    before = generator.potential.counts.energy
    monkeypatch.setattr("boltzgen.progress.Interrupts", interrupted_when_asked(3))
    history = anneal(generator, budget=25_600, start=frames, batch_size=64)
    assert history.interrupted
    assert {record["stage"] for record in history.records} == {"pretraining"}
    assert history.records[-1]["step"] == 2
    assert generator.potential.counts.energy == before


def test_unknown_starts_are_refused(molecule):
    generator = BoltzmannGenerator.for_molecule(molecule)
    with pytest.raises(ValueError, match="choose 'hot run'"):
        anneal(generator, start="cold run")
