"""Maximum likelihood on data with a known answer."""

import io
import itertools
import os

import numpy as np
import pytest
import torch
from analytic import GaussianFlow, Harmonic
from signals import interrupted_when_asked

from boltzgen.ensemble import Ensemble
from boltzgen.errors import CheckpointError, StructureError
from boltzgen.generator import BoltzmannGenerator
from boltzgen.pretraining import Pretraining, _held_out, pretrain
from boltzgen.training import TrainingDivergedError


def test_finds_mean_and_width_of_the_data_without_any_energy():
    data = 0.4 + 0.5 * torch.randn(5000, 1, 3, generator=torch.Generator().manual_seed(0))
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    history = pretrain(generator, data, n_steps=600, learning_rate=1e-2)
    torch.testing.assert_close(generator.flow.mean.detach(), torch.full((3,), 0.4), rtol=0, atol=0.03)
    torch.testing.assert_close(generator.flow.log_scale.exp().detach(), torch.full((3,), 0.5), rtol=0.03, atol=0)
    # the entropy of the normal distribution is the least negative log-likelihood
    entropy = 1.5 * (1 + np.log(2 * np.pi)) + 3 * np.log(0.5)
    assert history.records[-1]["held_out"] == pytest.approx(entropy, abs=0.1)
    assert generator.potential.counts.energy == 0


def test_weights_of_an_ensemble_are_used():
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.normal(-1, 0.2, (2000, 1, 3)), rng.normal(1, 0.2, (2000, 1, 3))])
    log_weights = np.repeat([0.0, -50.0], 2000)
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    pretrain(generator, Ensemble(positions, log_weights, 1.0), n_steps=600, learning_rate=1e-2)
    torch.testing.assert_close(generator.flow.mean.detach(), torch.full((3,), -1.0), rtol=0, atol=0.03)


def learn_by_heart(**options):
    """A flow that may put a narrow Gaussian on each of eight configurations: its training likelihood has no bound."""
    generator = BoltzmannGenerator(KernelDensity(8), Harmonic(), kT=1.0)
    data = torch.randn(160, 1, 3, generator=torch.Generator().manual_seed(1))
    few, many = data[:8], data[8:]
    generator.flow.start_on(few)
    history = pretrain(generator, few, validation=many, learning_rate=3e-2, n_steps=400, **options)
    with torch.no_grad():
        return history, -float(generator.log_prob(many).mean())


def test_what_is_learned_by_heart_is_not_kept():
    """Held-out likelihood rises and falls again; the generator has the weights of its maximum, and says so."""
    history, found = learn_by_heart(patience=None)
    held_out = history.table()["held_out"]
    lowest = int(np.argmin(held_out))
    assert 0 < lowest < len(held_out) - 1
    assert held_out[-1] > held_out[lowest] + 1
    assert history.table()["kept"].tolist() == [k == lowest for k in range(len(held_out))]
    assert found == pytest.approx(held_out[lowest], abs=1e-5)
    assert f"weights of step {history.records[lowest]['step']} are kept" in str(history.events[-1])
    assert "took all steps" in str(history.events[-1])
    assert f"weights of step {history.records[lowest]['step']} kept, held-out" in repr(history)


def test_training_ends_when_patience_does():
    history, found = learn_by_heart(patience=3)
    held_out = history.table()["held_out"]
    assert len(held_out) - 1 - np.argmin(held_out) == 3
    assert history.records[-1]["step"] < 400
    assert "ended early, of 400 steps" in str(history.events[-1])
    assert found == pytest.approx(held_out.min(), abs=1e-5)


def test_nothing_held_out_keeps_the_last_weights():
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    history = pretrain(generator, torch.zeros(10, 1, 3), validation=0, n_steps=60, learning_rate=1e-2)
    assert np.isnan(history.table()["held_out"]).all()
    assert history.records[-1]["kept"]
    assert "the last weights are kept" in history.events[-1].message


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_shares_that_make_no_sense(share):
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    with pytest.raises(ValueError, match="validation"):
        pretrain(generator, torch.zeros(10, 1, 3), validation=share, n_steps=1)


def test_what_is_held_out_is_independent():
    """Whole groups of an ensemble; whole stretches of a trajectory; never all of it."""
    groups = np.random.default_rng(0).integers(0, 12, 3000)
    held_out = _held_out(3000, groups, 0.25, seed=1).numpy()
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert 0.2 < held_out.mean() < 0.4
    trajectory = _held_out(1000, None, 0.1, seed=1).numpy()
    assert trajectory.mean() == 0.1
    assert np.flatnonzero(np.diff(trajectory.astype(int))).size <= 4  # two stretches of 50, not 100 frames
    assert _held_out(2, None, 0.9, seed=0).sum() == 1


def test_held_out_configurations_without_weight_are_refused():
    positions = np.random.default_rng(0).normal(size=(40, 1, 3))
    ensemble = Ensemble(positions, np.where(np.arange(40) < 20, 0.0, -np.inf), 1.0, groups=np.arange(40) // 20)
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    seed = next(s for s in range(20) if _held_out(40, ensemble.groups, 0.1, s)[-1])
    with pytest.raises(StructureError, match="held out have no weight"):
        pretrain(generator, ensemble, n_steps=1, seed=seed)
    other = next(s for s in range(20) if not _held_out(40, ensemble.groups, 0.1, s)[-1])
    with pytest.raises(StructureError, match="to train on have no weight"):
        pretrain(generator, ensemble, n_steps=1, seed=other)


def test_ensembles_of_another_temperature_or_target_are_refused():
    positions = np.random.default_rng(0).normal(size=(40, 1, 3))
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    hot, other = Ensemble(positions, np.zeros(40), 2.5), Ensemble(positions, np.zeros(40), 1.0, target="heavy atoms")
    with pytest.raises(StructureError, match=r"kT = 2.5 kJ/mol, .* 1 kJ/mol.*at_temperature"):
        pretrain(generator, hot, n_steps=1)
    with pytest.raises(StructureError, match=r"of heavy atoms, .* exp\(-U/kT\) of all atoms.*positions"):
        pretrain(generator, other, n_steps=1)
    with pytest.raises(StructureError, match=r"kT = 2.5"):
        pretrain(generator, positions, validation=hot, n_steps=1)
    pretrain(generator, hot.positions, n_steps=1)


def test_a_penalty_is_taken_out_of_the_weights():
    """Two clouds, of which the penalised weights count one alone and the unbiased ones the other."""
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.normal(-1, 0.2, (500, 1, 3)), rng.normal(1, 0.2, (500, 1, 3))])
    penalised, log_rigid = np.repeat([0.0, -50.0], 500), np.repeat([0.0, -100.0], 500)
    ensemble = Ensemble(positions, penalised, 1.0, log_rigid_integral=log_rigid)
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    pretrain(generator, ensemble, n_steps=600, learning_rate=1e-2)
    torch.testing.assert_close(generator.flow.mean.detach(), torch.full((3,), 1.0), rtol=0, atol=0.05)


class UndefinedOnceMoved(GaussianFlow):
    """Its densities are no numbers any more after the first step."""

    def log_prob(self, positions: torch.Tensor) -> torch.Tensor:
        value = super().log_prob(positions)
        return value if bool((self.mean == 0).all()) else value * torch.nan


def test_a_held_out_likelihood_that_never_was_a_number_is_an_error():
    generator = BoltzmannGenerator(UndefinedOnceMoved(), Harmonic(), kT=1.0)
    data = 0.4 + 0.5 * torch.randn(200, 1, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TrainingDivergedError, match="never was a finite number"):
        pretrain(generator, data, n_steps=20)
    assert all(bool((parameter == 0).all()) for parameter in generator.flow.parameters())  # as they were made


class KernelDensity(torch.nn.Module):
    """Equal mixture of Gaussians with centres and widths of their own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.centres = torch.nn.Parameter(torch.zeros(n, 3))
        self.log_width = torch.nn.Parameter(torch.full((n,), 0.5))

    def start_on(self, positions: torch.Tensor) -> None:
        with torch.no_grad():
            self.centres.copy_(positions[:, 0])

    def log_prob(self, positions: torch.Tensor) -> torch.Tensor:
        components = torch.distributions.Normal(self.centres, self.log_width.exp().unsqueeze(1))
        return components.log_prob(positions).sum(2).logsumexp(1) - np.log(len(self.centres))


def test_data_outside_the_domain_are_counted(generator, ensemble_of_mirror_images):
    with pytest.raises(StructureError, match="3 of 3 configurations lie outside"):
        pretrain(generator, ensemble_of_mirror_images, n_steps=1)
    with pytest.raises(StructureError, match=r"needs \(n, 22, 3\)"):
        pretrain(generator, np.zeros((4, 5, 3)), n_steps=1)


@pytest.fixture(scope="module")
def wider(generator):
    """Frames whose bonds vary twice as much as in the harmonic approximation, and the generator built on them."""
    chart = generator.coordinates
    molecule = generator.molecule
    frames = generator.sample_and_log_prob(1500)[0].double()
    coordinates = chart.internal.to_internal(frames)[0]
    bonds = [i for i, row in enumerate(chart.rows) if row.kind == "bond"]
    centre = torch.tensor([chart.rows[i].centre for i in bonds])
    coordinates[:, bonds] = centre + 2 * (coordinates[:, bonds] - centre)
    frames = chart.internal.to_cartesian(coordinates)[0].numpy()
    weights = np.where(np.arange(1500) < 1200, 0.0, -np.inf)
    data = Ensemble(frames, weights, molecule.kT, molecule=molecule)
    return data, BoltzmannGenerator.for_molecule(molecule, generator.potential, data=data, seed=0)


def test_a_generator_starts_with_the_widths_of_data(generator, wider, tmp_path):
    data, refined = wider
    assert refined.coordinates.rows == generator.coordinates.refined(data.positions, data.weights).rows
    pairs = zip(generator.coordinates.rows, refined.coordinates.rows, strict=True)
    ratios = [after.width / before.width for before, after in pairs if before.kind == "bond"]
    # 1200 frames against the 10 for each of 50 stiff coordinates that the harmonic approximation counts as
    n_prior = 10 * len(refined.coordinates.factor)
    assert np.mean(ratios) == pytest.approx(np.sqrt((4 * 1200 + n_prior) / (1200 + n_prior)), rel=0.05)
    refined.save(tmp_path / "model.safetensors")
    loaded = BoltzmannGenerator.load(tmp_path / "model.safetensors")
    assert loaded.coordinates.rows == refined.coordinates.rows
    np.testing.assert_array_equal(loaded.coordinates.factor, refined.coordinates.factor)
    fresh = torch.as_tensor(data.positions[1200:]).float()
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(fresh), refined.log_prob(fresh))
        assert float(refined.log_prob(fresh).mean()) > float(generator.log_prob(fresh).mean()) + 1


def test_widths_are_not_taken_from_data_that_do_not_fit(generator, ensemble_of_mirror_images):
    molecule, potential = generator.molecule, generator.potential
    build = lambda data: BoltzmannGenerator.for_molecule(molecule, potential, data=data)
    with pytest.raises(StructureError, match="3 of 3 configurations lie outside"):
        build(ensemble_of_mirror_images)
    with pytest.raises(StructureError, match=r"needs \(n, 22, 3\)"):
        build(np.zeros((4, 5, 3)))
    with pytest.raises(StructureError, match="kT = 5 kJ/mol"):
        build(Ensemble(np.zeros((4, 22, 3)), np.zeros(4), 5.0))


@pytest.fixture
def ensemble_of_mirror_images(generator):
    positions, _ = generator.sample_and_log_prob(3)
    return positions * torch.tensor([1.0, 1.0, -1.0])


@pytest.mark.parametrize("patience", [None, 3])
def test_interrupted_and_resumed_pretraining_equals_an_unbroken_one(patience):
    """Through the state that a file would hold, in the middle between two checks; best weights, order and all."""
    make = lambda: BoltzmannGenerator(GaussianFlow(), Harmonic(1.0), kT=1.0)
    data = 0.3 * torch.randn(400, 1, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    options = {"n_steps": 100, "learning_rate": 3e-2, "batch_size": 32, "patience": patience}
    unbroken = make()
    history = pretrain(unbroken, data, **options)
    first = Pretraining(make(), data, **options)
    first.run(lambda steps: itertools.islice(steps, 33))
    assert (first.step, first.is_complete) == (33, False)
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    second = Pretraining(make(), data, **options)
    second.load_state_dict(torch.load(stored, weights_only=True))
    second.run()
    again = second.finish()
    figures = lambda records: [(one["step"], one["loss"], one["held_out"], one["kept"]) for one in records]
    assert figures(again.records) == figures(history.records)
    assert [event.message for event in again.events] == [event.message for event in history.events]
    assert (again.interrupted, history.interrupted) == (False, False)
    for name, value in second.generator.flow.state_dict().items():
        assert torch.equal(value, unbroken.flow.state_dict()[name])
    with pytest.raises(CheckpointError, match="does not fit"):
        second.load_state_dict({"step": 3})


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_the_best_weights_so_far(monkeypatch):
    monkeypatch.setattr("boltzgen.progress.Interrupts", interrupted_when_asked(31))
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(1.0), kT=1.0)
    data = 0.3 * torch.randn(400, 1, 3, generator=torch.Generator().manual_seed(1))
    history = pretrain(generator, data, n_steps=200, learning_rate=3e-2)
    assert history.interrupted
    assert history.records[-1]["step"] == 30
    assert sum(record["kept"] for record in history.records) == 1
    assert "ended early, of 200 steps" in history.events[-1].message
    kept = next(record for record in history.records if record["kept"])
    assert kept["held_out"] == min(record["held_out"] for record in history.records)
