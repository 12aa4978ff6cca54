"""What a training is made of: replayed configurations, cooling at its own pace, divergence, early stops."""

import copy
import math

import numpy as np
import pytest
import torch
from analytic import DoubleWell, GaussianFlow, Harmonic

from boltzgen.energy.base import RawEvaluation
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import LOSSES
from boltzgen.training import (
    ReplayBuffer,
    Stage,
    Training,
    TrainingDivergedError,
    anneal,
    annealing_stages,
    refinement_stage,
)
from boltzgen.training.batches import Batch, RecentBatches
from boltzgen.training.cooling import LONGEST_HOLD, Cooling
from boltzgen.training.safeguard import BAD_IN_A_ROW, Safeguard
from boltzgen.training.watch import BasinWatch


def harmonic_generator(seed=0):
    return BoltzmannGenerator(GaussianFlow(mean=0.5, log_scale=0.3), Harmonic(stiffness=4.0), kT=1.0, seed=seed)


def test_a_buffer_draws_by_weight_at_any_temperature():
    buffer = ReplayBuffer(capacity=4, sharpness=1.0)
    energy, offset, log_q = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, -1.0])
    buffer.add(torch.arange(9.0).reshape(3, 1, 3), energy, offset, log_q)
    positions, reduced = buffer.draw(20_000, kT=2.0, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(-energy / 2 - offset - log_q, dim=0)
    found = torch.stack([(positions[:, 0, 0] == 3.0 * i).float().mean() for i in range(3)])
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)  # four standard errors
    torch.testing.assert_close(reduced, (energy / 2 + offset)[(positions[:, 0, 0] / 3).long()])


def test_a_full_buffer_forgets_the_oldest():
    buffer = ReplayBuffer(capacity=4, sharpness=0.0)
    for start in (0, 3):
        numbers = torch.arange(start, start + 3.0)
        buffer.add(numbers.reshape(3, 1, 1), numbers, torch.zeros(3), torch.zeros(3))
    assert len(buffer) == 4
    positions, reduced = buffer.draw(500, 1.0, torch.Generator().manual_seed(0))
    assert set(reduced.tolist()) == {2.0, 3.0, 4.0, 5.0}
    torch.testing.assert_close(positions[:, 0, 0], reduced)


@pytest.mark.parametrize("loss", sorted(name for name, loss in LOSSES.items() if loss.off_policy))
def test_replay_saves_evaluations_and_finds_the_same_well(loss):
    generator = harmonic_generator()
    stages = [Stage("refinement", loss, 1500, 1.0, 1.0, 1e-2, 1e-4, replay=0.5)]
    training = Training(generator, stages, batch_size=256)
    training.run()
    assert generator.potential.counts.energy == 1500 * 128 == training.evaluations
    torch.testing.assert_close(generator.flow.log_scale.exp(), torch.full((3,), 0.5), rtol=0.03, atol=0)


def test_the_level_k_comes_from_fresh_samples():
    log_p, log_q = torch.tensor([0.0, 2.0, 9.0]), torch.zeros(3)
    objective = LOSSES["l2+"].start([])
    assert float(objective(log_p, log_q, n_fresh=2)) == pytest.approx((1 + 64) / 3)  # K = 1
    assert float(objective(log_p, log_q)) == pytest.approx((9 - 11 / 3) ** 2 / 3)


def test_losses_that_need_fresh_samples_refuse_replay():
    with pytest.raises(ValueError, match="'reverse-kl' cannot use replayed configurations"):
        Training(harmonic_generator(), [Stage("a", "reverse-kl", 10, replay=0.5)])


@pytest.mark.parametrize("changed", [{"replay": 1.0}, {"replay": -0.1}, {"ess_bound": 0.0}, {"ess_bound": 1.0}])
def test_impossible_shares_are_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        Stage("a", "l2+", 10, **changed)


def gaussian_batches(heat, n=4000, inside=None):
    """Eight batches of the harmonic well's own distribution at a heat, for kT = 1 and stiffness 1."""
    recent, rng = RecentBatches(), torch.Generator().manual_seed(1)
    for _ in range(8):
        x = math.sqrt(heat) * torch.randn(n, 3, generator=rng)
        energy = 0.5 * x.square().sum(1)
        log_q = -energy / heat - 1.5 * math.log(heat)
        recent.add(Batch(energy, torch.zeros(n), log_q, {} if inside is None else {"A": inside(x)}))
    return recent


def ess_of_cooling(heat, colder):
    """Kish's ESS fraction of normal samples at one heat, weighted at another, in three dimensions (exact)."""
    a, b = 1 / colder, 1 / heat
    return ((b / a) * math.sqrt((2 * a - b) / b)) ** 3


def cooling_from_4(bound, n_steps=1000):
    return Cooling(Stage("cooling", "l2+", n_steps, 4.0, 1.0, ess_bound=bound), 1.0, BasinWatch())


@pytest.mark.parametrize("bound", [0.5, 0.9])
def test_cooling_goes_as_far_as_the_bound_lets_it(bound):
    cooling = cooling_from_4(bound)
    assert cooling.update(gaussian_batches(4.0), within=8) == []
    assert ess_of_cooling(4.0, cooling.heat) == pytest.approx(bound, abs=0.02)


def test_cooling_waits_while_the_ess_is_below_the_bound_and_between_decisions():
    cooling = cooling_from_4(0.9)
    cooling.update(gaussian_batches(2.5), within=8)  # ESS at heat 4: 0.7
    cooling.update(None, within=9)
    assert cooling.heat == 4.0


def test_cooling_ends_within_its_stage_and_says_that_the_budget_did_it():
    cooling = cooling_from_4(0.9, n_steps=100)
    recent = gaussian_batches(2.5, n=200)
    events = [event for within in range(1, 100) for event in cooling.update(recent, within)]
    assert cooling.heat == pytest.approx(1.0)
    assert [kind for kind, _ in events] == ["pace"]


def test_a_basin_that_gets_lost_is_seen():
    watch = BasinWatch()
    watch.foresee(gaussian_batches(4.0, inside=lambda x: x[:, 0] > 0), kT=4.0)
    assert watch.check(gaussian_batches(4.0, inside=lambda x: x[:, 0] > 0), kT=4.0) == []
    (message,) = watch.check(gaussian_batches(4.0, inside=lambda x: x[:, 0] > 5), kT=4.0)
    assert message.startswith("A holds 0.")
    assert watch.shrunken == ["A"]
    assert watch.check(gaussian_batches(4.0, inside=lambda x: x[:, 0] > 5), kT=4.0) == []  # said once
    assert watch.shrunken == ["A"]


def test_a_basin_of_few_effective_samples_raises_no_alarm():
    watch = BasinWatch()
    recent = gaussian_batches(4.0, n=50, inside=lambda x: x[:, 0] > 5)
    watch.foresee(recent, kT=4.0)
    assert watch.check(gaussian_batches(4.0, n=50, inside=lambda x: x[:, 0] > 50), kT=4.0) == []


def alarm_rate(ratio, spread, n=100, repetitions=400):
    """How often a basin with a tenth of the samples raises the alarm if its true population is a multiple of that."""
    rng, n_alarms = np.random.default_rng(0), 0
    for _ in range(repetitions):
        recent = RecentBatches()
        for _ in range(8):
            inside = torch.as_tensor(rng.random(n) < 0.1)
            log_weights = torch.as_tensor(rng.normal(-0.5 * spread**2, spread, n))  # of mean weight one
            log_weights += torch.where(inside, math.log(ratio), math.log((1 - 0.1 * ratio) / 0.9))
            recent.add(Batch(-log_weights, torch.zeros(n), torch.zeros(n), {"A": inside}))
        n_alarms += bool(BasinWatch().check(recent, 1.0))
    return n_alarms / repetitions


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_the_alarm_has_the_level_and_the_power_of_its_two_standard_errors(spread):
    """At the edge, half of the true population, 2.3 % of alarms are false; at a third, nearly all are raised."""
    assert 0.003 < alarm_rate(2.0, spread) < 0.045
    assert alarm_rate(3.0, spread) > 0.9


def test_the_error_of_a_weighted_population_is_that_of_repetitions():
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        recent, inside = RecentBatches(), torch.as_tensor(rng.random(2000) < 0.3)
        recent.add(
            Batch(-torch.as_tensor(rng.normal(0, 0.7, 2000)), torch.zeros(2000), torch.zeros(2000), {"A": inside})
        )
        found.append(recent.populations(1.0)["A"])
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.12)


def test_a_shrunken_basin_holds_the_cooling_for_a_while():
    cooling = cooling_from_4(0.5, n_steps=100_000)
    cooling.watch.shrunken = ["A"]
    recent = gaussian_batches(4.0)
    events = [event for k in range(1, LONGEST_HOLD + 1) for event in cooling.update(recent, 8 * k)]
    assert cooling.heat == 4.0
    assert [kind for kind, _ in events] == ["alarm"]
    (event,) = cooling.update(recent, 8 * (LONGEST_HOLD + 1))
    assert "A did not recover" in event[1]
    assert cooling.heat < 4.0


def test_infinite_energies_count_in_the_ess_and_come_once_in_eight():
    recent = RecentBatches()
    energy = torch.tensor([0.0, math.inf])
    assert not recent.are_new()
    for _ in range(8):
        recent.add(Batch(energy, torch.zeros(2), torch.zeros(2), {"A": torch.tensor([True, True])}))
    assert recent.are_new()
    assert not recent.are_new()
    assert recent.ess_fraction(1.0) == pytest.approx(0.5)
    assert recent.populations(1.0) == {"A": pytest.approx((1.0, 0.0))}
    assert recent.effective_samples(1.0) == {"A": pytest.approx(8.0)}


class HalfForbidden(Harmonic):
    """Infinite energy at negative x."""

    def _evaluate(self, positions, forces):
        raw = super()._evaluate(positions, forces)
        energy = torch.where(positions[:, 0, 0] < 0, torch.inf, raw.energy)
        return RawEvaluation(energy, raw.forces)


def test_the_history_has_the_ess_of_all_samples():
    generator = BoltzmannGenerator(GaussianFlow(0.0, math.log(0.5)), HalfForbidden(4.0), kT=1.0)
    stage = Stage("a", "l2+", 25, learning_rate_start=1e-9, learning_rate_end=1e-9)
    history = Training(generator, [stage], batch_size=512).run()
    assert history.records[-1]["ess_fraction"] == pytest.approx(0.5, abs=0.05)


def test_annealing_at_its_own_pace_keeps_both_wells():
    from test_training import MixtureFlow

    generator = BoltzmannGenerator(MixtureFlow(), DoubleWell(), kT=1.0)
    basins = {"right": lambda x: x[:, 0, 0] > 0}
    training = Training(generator, annealing_stages(4.0, 1000, ess_bound=0.9), batch_size=256, basins=basins)
    history = training.run()
    heats = history.table()["heat"]
    assert heats[0] == 4.0
    assert heats[-1] == 1.0
    assert (heats[1:] <= heats[:-1]).all()
    ensemble = generator.sample(50_000)
    right = ensemble.positions[:, 0, 0] > 0
    assert ensemble.weights[right].sum() == pytest.approx(generator.potential.minor_population, abs=0.01)


class Failing(Harmonic):
    """NaN energies on some calls; a call that failed is repeated once by the potential."""

    def __init__(self, first, last):
        super().__init__(4.0)
        self.first, self.last, self.calls = first, last, 0

    def _evaluate(self, positions, forces):
        self.calls += 1
        raw = super()._evaluate(positions, forces)
        if self.first <= self.calls < self.last:
            return RawEvaluation(raw.energy * float("nan"), raw.forces)
        return raw


def test_failing_steps_are_taken_back_and_reported():
    potential = Failing(300, 300 + 2 * BAD_IN_A_ROW)
    generator = BoltzmannGenerator(GaussianFlow(0.5, 0.3), potential, kT=1.0)
    training = Training(generator, [Stage("a", "l2+", 1500, 1.0, 1.0, 1e-2, 1e-4)], batch_size=256)
    history = training.run()
    (event,) = history.happened("divergence")
    assert "are taken back too" in event.message
    assert training.skipped == BAD_IN_A_ROW
    torch.testing.assert_close(generator.flow.log_scale.exp(), torch.full((3,), 0.5), rtol=0.03, atol=0)


def test_a_hopeless_training_ends_with_a_message():
    generator = BoltzmannGenerator(GaussianFlow(0.5, 0.3), Failing(0, 10**9), kT=1.0)
    with pytest.raises(TrainingDivergedError, match="only 0 of 256 samples had a finite energy"):
        Training(generator, [Stage("a", "l2+", 1500)], batch_size=256).run()


def test_an_exploding_gradient_is_left_out_and_a_large_one_is_not():
    parameter = torch.nn.Parameter(torch.zeros(2))
    guard = Safeguard([parameter], torch.optim.Adam([parameter]), [torch.zeros(2)])
    assert guard.is_good(1.0, 1e9)  # nothing is usual yet
    for _ in range(200):
        guard.took(1.0)
    assert guard.is_good(1.0, 1e3)
    assert not guard.is_good(1.0, 1e5)
    assert not guard.is_good(math.nan, 1.0)
    assert not guard.is_good(1.0, math.inf)


def test_going_back_restores_parameters_average_and_optimiser():
    parameter = torch.nn.Parameter(torch.ones(2))
    average, optimizer = [torch.full((2,), 3.0)], torch.optim.Adam([parameter], lr=0.1)
    guard = Safeguard([parameter], optimizer, average)
    for _ in range(100):
        parameter.grad = torch.ones(2)
        optimizer.step()
        average[0] += 1
        guard.took(1.0)
    kept, moments = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
    parameter.grad = torch.full((2,), 7.0)
    optimizer.step()
    average[0] += 1
    said = [guard.failed("it broke") for _ in range(BAD_IN_A_ROW)]
    assert said[:-1] == [None] * (BAD_IN_A_ROW - 1)
    assert guard.rate == 0.5
    torch.testing.assert_close(parameter.detach(), kept)
    torch.testing.assert_close(average[0], torch.full((2,), 103.0))
    torch.testing.assert_close(optimizer.state_dict()["state"][0]["exp_avg"], moments["state"][0]["exp_avg"])


def test_a_failure_now_and_then_does_not_keep_the_last_good_state_old():
    parameter = torch.nn.Parameter(torch.zeros(1))
    guard = Safeguard([parameter], torch.optim.Adam([parameter]), [torch.zeros(1)])
    for _ in range(10):
        for _ in range(60):
            guard.took(1.0)
        guard.failed("now and then")
        parameter.data += 1
    guard.took(1.0)
    said = [guard.failed("it broke") for _ in range(BAD_IN_A_ROW)]
    assert "good steps before them are taken back too" in said[-1]
    assert parameter.item() >= 8  # the state of 120 good steps ago at most


def test_going_back_restores_losses_that_learn():
    parameter, module = torch.nn.Parameter(torch.zeros(1)), torch.nn.Linear(1, 1)
    guard = Safeguard([parameter], torch.optim.Adam([parameter]), [torch.zeros(1)], {"loss": module})
    kept = module.weight.detach().clone()
    module.weight.data += 5
    for _ in range(BAD_IN_A_ROW):
        guard.failed("it broke")
    torch.testing.assert_close(module.weight.detach(), kept)


def test_a_stopped_training_goes_on_from_its_own_parameters():
    stages = [Stage("a", "l2+", 60)]
    whole, parts = harmonic_generator(), harmonic_generator()
    Training(whole, stages, batch_size=64).run()
    training, steps = Training(parts, stages, batch_size=64), iter(range(1000))
    assert training.run(stop=lambda: next(steps) >= 30).interrupted
    assert not training.run().interrupted
    for a, b in zip(whole.flow.parameters(), parts.flow.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("used", [False, True])
def test_the_state_of_a_stopped_training_is_that_of_its_next_step(used):
    """Not of the averages that its generator holds; also when taken over by a training that was itself stopped."""
    stages = [Stage("a", "l2+", 60)]
    whole, again = harmonic_generator(), harmonic_generator(seed=99)
    Training(whole, stages, batch_size=64).run()
    stopped, steps = Training(harmonic_generator(), stages, batch_size=64), iter(range(1000))
    stopped.run(stop=lambda: next(steps) >= 30)
    resumed = Training(again, stages, batch_size=64)
    if used:
        resumed.run(stop=lambda: resumed.step >= 10)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed.run()
    for a, b in zip(whole.flow.parameters(), again.flow.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("replay", [0.0, 0.5, 0.75])
def test_annealing_spends_its_budget(replay):
    generator = harmonic_generator()
    anneal(generator, t_start=4.0, budget=20_000, batch_size=100, replay=replay)
    assert generator.potential.counts.energy == pytest.approx(20_000, rel=0.02)


def test_training_stops_at_the_wanted_ess():
    generator = harmonic_generator()
    stages = [Stage("refinement", "l2+", 20_000, 1.0, 1.0, 1e-2, 1e-4)]
    history = Training(generator, stages, batch_size=256, target_ess=0.9).run()
    (event,) = history.happened("stop")
    assert "ESS of 90%" in event.message
    assert history.records[-1]["step"] < 20_000
    assert not history.interrupted
    assert generator.sample(20_000).ess_fraction > 0.85


def test_training_stops_when_its_time_is_over():
    stages = [Stage("a", "l2+", 10**9)]
    history = Training(harmonic_generator(), stages, batch_size=64, seconds=0.3, compile=False).run()
    (event,) = history.happened("stop")
    assert "wall time of 0.3 s" in event.message
    assert history.records[-1]["step"] < 10**9


@pytest.mark.parametrize("stopped", [43, 75])
def test_every_part_resumes_to_the_last_bit(stopped):
    stages = [
        Stage("cooling", "l2+", 60, 3.0, 1.0, replay=0.25, ess_bound=0.6),
        Stage("refinement", "trajectory-balance", 40, replay=0.5),
    ]
    options = {"batch_size": 64, "basins": {"right": lambda x: x[:, 0, 0] > 0}}
    whole = harmonic_generator()
    buffer = ReplayBuffer(1000)
    finished = Training(whole, stages, buffer=buffer, **options)
    assert finished.buffer is buffer
    finished.run()
    saved = {}
    first = Training(harmonic_generator(), stages, buffer=ReplayBuffer(1000), **options)
    first.on_checkpoint = lambda training: saved.update(copy.deepcopy(training.state_dict()))
    steps = iter(range(1000))
    first.run(stop=lambda: next(steps) >= stopped)
    second = harmonic_generator(seed=99)
    resumed = Training(second, stages, buffer=ReplayBuffer(1000), **options)
    resumed.load_state_dict(saved)
    resumed.run()
    for a, b in zip(whole.flow.parameters(), second.flow.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history.records[-1]["ess_fraction"] == finished.history.records[-1]["ess_fraction"]
    assert resumed.history.events == finished.history.events


def test_refinement_can_replay():
    assert refinement_stage(10, replay=0.3).n_fresh(100) == 70
