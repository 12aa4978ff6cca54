"""Samplers against known answers: exact variances, known populations, reproducibility."""

from __future__ import annotations

import dataclasses
import os
import signal
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from scipy.integrate import quad
from signals import interrupted_when_asked
from torch import Tensor

from boltzgen import sampling
from boltzgen.checkpoint_file import read_checkpoint
from boltzgen.energy import BatchedPotential, CompiledPotential, RawEvaluation
from boltzgen.errors import CheckpointError, OutputError, PotentialError
from boltzgen.sampling import HybridWalkers
from boltzgen.sampling.langevin import layout_forces
from boltzgen.sampling.run import GAS_CONSTANT, generator

KT = GAS_CONSTANT * 300


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches here are too small to share out; on a busy machine the threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Analytic(BatchedPotential):
    """An energy written as a differentiable function of (B, N, 3) positions."""

    def __init__(self, n_atoms: int, energy: Any) -> None:
        super().__init__(n_atoms)
        self._energy = energy

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        with torch.enable_grad():
            x = positions.clone().requires_grad_()
            energy = self._energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return RawEvaluation(energy.detach(), -gradient)


def molecule(positions: Any, masses: Any, forces: tuple[openmm.Force, ...] = ()) -> types.SimpleNamespace:
    """The attributes of a Molecule that samplers use."""
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    return types.SimpleNamespace(
        system=system, positions=np.array(positions) * unit.nanometer, temperature=300 * unit.kelvin, kT=KT
    )


def double_well(x: Tensor) -> Tensor:
    """Two wells in the distance coordinate d_x of two particles, 6 kT barrier and a tilt; harmonic otherwise."""
    d = x[:, 1] - x[:, 0]
    u = d[:, 0] / 0.1
    return KT * (6 * (u**2 - 1) ** 2 + 0.7 * u) + 500 * (d[:, 1] ** 2 + d[:, 2] ** 2)


def upper_population() -> float:
    """P(u > 0) of the double well, by quadrature."""

    def density(u: float) -> float:
        return float(np.exp(-(6 * (u**2 - 1) ** 2 + 0.7 * u)))

    return quad(density, 0, 3)[0] / quad(density, -3, 3)[0]


def test_baoab_samples_harmonic_oscillators_exactly_at_any_step() -> None:
    """The configurational variance is kT/k also at 60 % of the stability limit, where other schemes err by 10 %."""
    stiffness, mass = 1000.0, 10.0
    potential = Analytic(2, lambda x: 0.25 * stiffness * (x[:, 1] - x[:, 0]).square().sum(dim=1))
    # Reduced mass 5, force constant k/2 on the difference.
    step = 0.6 * 2 / np.sqrt(0.5 * stiffness / (mass / 2))
    walkers = sampling.BatchedLangevin(
        layout_forces(potential, torch.device("cpu"), torch.float64, 0),
        torch.zeros(3, 2, 4000, dtype=torch.float64),
        np.full(2, mass),
        KT,
        step,
        2 / step / 10,
        generator(1),
    )
    walkers.run(50)
    squares = []
    for _ in range(40):
        walkers.run(10)
        squares.append((walkers.positions[:, 1] - walkers.positions[:, 0]).square().mean().item())
    expected = KT / (0.5 * stiffness)
    # 3 * 4000 * 40 correlated values: a standard error well below 1 %.
    assert np.mean(squares) == pytest.approx(expected, rel=0.01)


def test_velocities_follow_the_temperature_of_each_walker() -> None:
    potential = Analytic(2, lambda x: 500 * (x[:, 1] - x[:, 0]).square().sum(dim=1))
    kT = torch.tensor([1.0, 4.0]).repeat_interleave(3000)
    walkers = sampling.BatchedLangevin(
        layout_forces(potential, torch.device("cpu"), torch.float32, 0),
        torch.zeros(3, 2, 6000),
        np.array([1.0, 12.0]),
        kT,
        0.001,
        20.0,
        generator(2),
    )
    walkers.run(400)
    kinetic = walkers.velocities.square().mean(dim=0) * torch.tensor([1.0, 12.0])[:, None]
    means = kinetic.reshape(2, 2, 3000).mean(dim=2)
    torch.testing.assert_close(means, torch.tensor([[1.0, 4.0]] * 2), rtol=0.05, atol=0)


@pytest.fixture(scope="module", params=[None, 10], ids=["langevin", "hybrid"])
def tempered(request: pytest.FixtureRequest) -> sampling.SamplingRun:
    system = molecule([[0, 0, 0], [-0.1, 0, 0]], [20.0, 20.0])
    return sampling.parallel_tempering(
        system,
        Analytic(2, double_well),
        n_steps=12_000,
        t_max=1500,
        n_replicas=5,
        n_walkers=96,
        time_step=10.0,
        exchange_interval=20,
        save_interval=40,
        seed=3,
        trajectory=request.param,
        all_temperatures=True,
    )


def test_parallel_tempering_recovers_a_known_population(tempered: sampling.SamplingRun) -> None:
    """All walkers start in one well; the other is recovered within its own error bar."""
    ensemble = tempered.ensemble
    upper = ensemble.positions[:, 1, 0] > ensemble.positions[:, 0, 0]
    by_group = np.array([upper[ensemble.groups == g].mean() for g in np.unique(ensemble.groups)])
    error = by_group.std(ddof=1) / np.sqrt(len(by_group))
    assert error < 0.02
    assert abs(by_group.mean() - upper_population()) < 4 * error


def test_all_temperatures_together_by_mbar(tempered: sampling.SamplingRun) -> None:
    """Frames and energies of every replica belong to its temperature: pymbar finds the known population from them."""
    from pymbar import MBAR

    first = tempered.replicas[0]
    np.testing.assert_array_equal(first.positions, tempered.ensemble.positions)
    assert [one.kT for one in tempered.replicas] == pytest.approx((GAS_CONSTANT * tempered.temperatures).tolist())
    energies = np.concatenate([one.energies for one in tempered.replicas])
    u_kn = energies / np.array([[one.kT] for one in tempered.replicas])
    weights = MBAR(u_kn, [len(one) for one in tempered.replicas]).weights()[:, 0]
    positions = np.concatenate([one.positions for one in tempered.replicas])
    upper = positions[:, 1, 0] > positions[:, 0, 0]
    assert weights @ upper == pytest.approx(upper_population(), abs=0.02)
    # the hottest replica alone says something else
    assert abs(upper[-len(first) :].mean() - upper_population()) > 0.05


def hyperbolic(x: Tensor) -> Tensor:
    """4 kT sqrt(1 + u^2) for each coordinate u of the difference of two atoms, in units of 5 pm."""
    return 4 * KT * (1 + ((x[:, 1] - x[:, 0]) / 0.005).square()).sqrt().sum(dim=1)


def test_hybrid_monte_carlo_has_no_error_from_its_time_step() -> None:
    """At a step at which Langevin dynamics are visibly off, the mean square is right."""
    pair = molecule([[0, 0, 0], [0, 0, 0]], [10.0, 10.0])
    moment = lambda power: quad(lambda u: u**power * np.exp(4 - 4 * np.sqrt(1 + u**2)), 0, 20)[0]
    square = moment(2) / moment(0)
    options: dict[str, Any] = {"n_steps": 4000, "n_replicas": 1, "n_walkers": 400, "time_step": 5.0}
    off = {}
    for name, trajectory in {"hybrid": 10, "langevin": None}.items():
        run = sampling.parallel_tempering(
            pair,
            Analytic(2, hyperbolic),
            **options,
            trajectory=trajectory,
            exchange_interval=10,
            save_interval=100,
            seed=7,
        )
        difference = run.ensemble.positions[:, 1] - run.ensemble.positions[:, 0]
        squares = np.square(difference / 0.005).mean(1)
        means = np.array([squares[run.ensemble.groups == g].mean() for g in range(400)])
        off[name] = (means.mean() - square) / (means.std(ddof=1) / 20)
        if name == "hybrid":
            assert 0.5 < run.move_acceptance[0] < 0.97
            assert run.method == "parallel tempering, hybrid Monte Carlo"
    assert abs(off["hybrid"]) < 4
    assert abs(off["langevin"]) > 8


def test_swap_statistics_and_energies(tempered: sampling.SamplingRun) -> None:
    assert tempered.temperatures[0] == pytest.approx(300)
    assert tempered.temperatures[-1] == pytest.approx(1500)
    assert ((tempered.swap_acceptance > 0.2) & (tempered.swap_acceptance < 1)).all()
    assert tempered.round_trips > 96
    relaxing = 200
    assert tempered.evaluations == 5 * 96 * (12_000 + 1 + relaxing)
    positions = torch.from_numpy(tempered.ensemble.positions)
    assert tempered.ensemble.energies is not None
    np.testing.assert_allclose(double_well(positions).numpy(), tempered.ensemble.energies, rtol=1e-4, atol=1e-3)
    assert "round trips" in tempered.report()
    assert tempered.verdict().verdict.startswith("consistent")
    assert dataclasses.replace(tempered, round_trips=0).verdict().verdict == "do not use"


def test_a_run_that_is_ended_early_keeps_what_it_has() -> None:
    def first(rounds: Any) -> Any:
        return list(rounds)[:30]

    run = sampling.parallel_tempering(
        molecule([[0, 0, 0], [-0.1, 0, 0]], [20.0, 20.0]),
        Analytic(2, double_well),
        n_steps=2000,
        n_replicas=2,
        n_walkers=3,
        time_step=10.0,
        exchange_interval=20,
        save_interval=40,
        progress=first,
    )
    assert run.ended_early
    assert (run.n_steps, len(run.ensemble)) == (600, 3 * 5)  # a fifth of what was planned is burn-in
    assert "ended early, after 600 steps" in run.report()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_sampler_that_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes before the seventh round of ten; two are burn-in."""
    asked = lambda: monkeypatch.setattr("boltzgen.progress.Interrupts", interrupted_when_asked(7))
    system = chain()
    potential = CompiledPotential(system.system, positions=system.positions)
    bias = sampling.TorsionBias((system.torsions["phi"], system.torsions["psi"]), np.zeros((12, 12)))
    options: dict[str, Any] = {"n_steps": 100, "n_walkers": 4, "save_interval": 10, "progress": True}
    before = signal.getsignal(signal.SIGINT)
    asked()
    tempered = sampling.parallel_tempering(system, potential, n_replicas=2, exchange_interval=10, **options)
    asked()
    flattened = sampling.flattened_sampling(system, potential, bias, n_groups=2, burn_in=0.2, **options)
    assert signal.getsignal(signal.SIGINT) is before
    for run in (tempered, flattened):
        assert run.ended_early
        assert (run.n_steps, len(run.ensemble)) == (60, 4 * 4)


def test_the_same_seed_gives_the_same_frames() -> None:
    system = molecule([[0, 0, 0], [-0.1, 0, 0]], [20.0, 20.0])
    options: dict[str, Any] = {
        "n_steps": 200,
        "n_replicas": 3,
        "n_walkers": 4,
        "save_interval": 20,
        "exchange_interval": 10,
    }
    a, b, c = (
        sampling.parallel_tempering(system, Analytic(2, double_well), seed=seed, **options).ensemble.positions
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def samplers() -> dict[str, Any]:
    """Each as a callable of a checkpoint and a seed; ten rounds, two of them burn-in."""
    system = chain()
    potential = CompiledPotential(system.system, positions=system.positions)
    grid = 5 * np.cos(np.add.outer(np.arange(12), np.arange(12)) * np.pi / 6)
    bias = sampling.TorsionBias((system.torsions["phi"], system.torsions["psi"]), grid)
    options: dict[str, Any] = {"n_steps": 100, "n_walkers": 4, "progress": True}
    saved = options | {"save_interval": 10}
    tempering = saved | {"n_replicas": 3, "exchange_interval": 10, "all_temperatures": True}
    biased = tempering | {"all_temperatures": False, "bias": bias}
    growing = options | {"deposit_interval": 10, "grid_size": 12}
    return {
        "tempering, biased": partial(sampling.parallel_tempering, system, potential, trajectory=5, **biased),
        "tempering": partial(sampling.parallel_tempering, system, potential, **tempering),
        "hybrid": partial(sampling.parallel_tempering, system, potential, trajectory=5, **tempering),
        "flattened": partial(sampling.flattened_sampling, system, potential, bias=bias, n_groups=2, **saved),
        "bias": partial(sampling.learn_bias, system, potential, **growing),
    }


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["tempering", "hybrid", "tempering, biased", "flattened", "bias"])
@pytest.mark.parametrize("asked", [2, 7])
def test_a_sampler_goes_on_from_its_checkpoint(
    name: str, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the burn-in or later: the frames of an unbroken run, to the last bit."""
    sampler, path = samplers()[name], tmp_path / "state.pt"
    whole = sampler()
    with monkeypatch.context() as patched:
        patched.setattr("boltzgen.progress.Interrupts", interrupted_when_asked(asked))
        if asked == 2 and name != "bias":
            with pytest.raises(PotentialError, match=r"before its first frame; the same call goes on from .*state\.pt"):
                sampler(checkpoint=path)
        else:
            sampler(checkpoint=path)
    evaluations = samplers()[name](checkpoint=path).evaluations
    n_walkers = 4 if name in ("flattened", "bias") else 12
    assert evaluations == whole.evaluations + 3 * n_walkers  # to compare the starts, and to make the walkers again
    written = path.stat().st_mtime_ns
    again = sampler(checkpoint=path)  # complete: nothing is left to do, to pay or to write
    assert again.evaluations == evaluations
    assert path.stat().st_mtime_ns == written
    if name == "bias":
        np.testing.assert_array_equal(again.grid, whole.grid)
        return
    assert not again.ended_early
    assert again.n_steps == whole.n_steps
    np.testing.assert_array_equal(again.ensemble.positions, whole.ensemble.positions)
    np.testing.assert_array_equal(again.ensemble.log_weights, whole.ensemble.log_weights)
    for mine, other in zip(again.replicas, whole.replicas, strict=True):
        np.testing.assert_array_equal(mine.energies, other.energies)
    if n_walkers == 12:
        np.testing.assert_array_equal(again.move_acceptance, whole.move_acceptance)
        np.testing.assert_array_equal(again.swap_acceptance, whole.swap_acceptance)
        assert again.round_trips == whole.round_trips


@pytest.mark.parametrize("name", ["tempering", "hybrid", "flattened", "bias"])
def test_a_checkpoint_is_written_between_rounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies in the middle of a round goes on from the one before."""
    sampler, path = samplers()[name], tmp_path / "state.pt"
    whole = sampler()
    owner = HybridWalkers if name == "hybrid" else sampling.BatchedLangevin
    run, calls = owner.run, []

    def dies(walkers: Any, n_steps: int) -> None:
        calls.append(n_steps)
        run(walkers, n_steps if len(calls) != 7 else n_steps // 2)
        if len(calls) == 7:
            raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("boltzgen.checkpoint_file.CHECKPOINT_SECONDS", 0.0)
        patched.setattr(owner, "run", dies)
        with pytest.raises(MemoryError):
            sampler(checkpoint=path)
    assert read_checkpoint(path).content["done"] == 6
    again = sampler(checkpoint=path)
    if name == "bias":
        np.testing.assert_array_equal(again.grid, whole.grid)
    else:
        np.testing.assert_array_equal(again.ensemble.positions, whole.ensemble.positions)
        np.testing.assert_array_equal(again.ensemble.log_weights, whole.ensemble.log_weights)


@pytest.mark.parametrize("name", ["tempering", "flattened", "bias"])
def test_a_checkpoint_of_another_sampling_is_refused(name: str, tmp_path: Path) -> None:
    path, sampler = tmp_path / "state.pt", samplers()[name]
    sampler(checkpoint=path)
    system = chain()
    potential = CompiledPotential(system.system, positions=system.positions)
    hot = chain()
    hot.temperature, hot.kT = 600 * unit.kelvin, 2 * KT
    stiff = chain()
    stiff.system.getForce(2).addTorsion(1, 2, 3, 4, 1, 0.0, 1.0)
    foreign = Analytic(5, lambda x: 1e4 * x.square().sum(dim=(1, 2)))
    for message, other in {
        "seed is 0 there and 1 here": partial(sampler, seed=1),
        "n_steps is 100 there and 200 here": partial(sampler, n_steps=200),
        "start is": partial(sampler, start=np.array(system.positions) * 1.5),
        "kT is": partial(sampler.func, hot, *sampler.args[1:], **sampler.keywords),
        "system is": partial(sampler.func, stiff, potential, *sampler.args[2:], **sampler.keywords),
        "energies of its start": partial(sampler.func, system, foreign, *sampler.args[2:], **sampler.keywords),
    }.items():
        with pytest.raises(CheckpointError, match=f"state.pt belongs to another run: .*{message}"):
            other(checkpoint=path)
    path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged"):
        sampler(checkpoint=path)
    with pytest.raises(OutputError, match="nowhere"):
        sampler(checkpoint=tmp_path / "nowhere" / "state.pt")


@pytest.mark.parametrize("name", ["flattened", "tempering, biased"])
def test_a_checkpoint_under_another_bias_is_refused(name: str, tmp_path: Path) -> None:
    path, sampler = tmp_path / "state.pt", samplers()[name]
    sampler(checkpoint=path)
    bias = sampler.keywords["bias"]
    grid = bias.grid.copy()
    grid[6, 6] = 50.0  # far from the start
    with pytest.raises(CheckpointError, match="bias is"):
        sampler(checkpoint=path, bias=dataclasses.replace(bias, grid=grid))
    with pytest.raises(CheckpointError, match=r"is .* there and .* here"):
        samplers()["hybrid"](checkpoint=path)


def test_hybrid_monte_carlo_that_does_not_move_is_an_error() -> None:
    tempering = samplers()["hybrid"]
    with pytest.raises(
        PotentialError, match=r"12 of 12 walkers never moved in 20 trajectories with a time step of 500 fs"
    ):
        tempering(time_step=500.0)


def test_swaps_keep_detailed_balance() -> None:
    """With energies drawn afresh from each temperature's own distribution, swaps leave those distributions alone."""
    temperatures = np.array([300.0, 450.0])
    exchange = sampling.ReplicaExchange(temperatures, 200_000, generator(1))
    # Gamma-distributed energies: the canonical distribution of four quadratic degrees of freedom.
    scale = torch.from_numpy(GAS_CONSTANT * temperatures)[:, None]
    energies = scale * torch.distributions.Gamma(2.0, 1.0).sample((2, 200_000)).double()
    order, velocity_scale = exchange.propose(energies.reshape(-1))
    swapped = energies.reshape(-1)[order].reshape(2, -1)
    torch.testing.assert_close(swapped.mean(dim=1), 2 * scale[:, 0], rtol=0.02, atol=0)
    moved = order != torch.arange(400_000)
    assert 0.3 < moved.double().mean() < 0.9
    expected = torch.where(moved, 1.5**0.5, 1.0)
    expected[200_000:] = torch.where(moved[200_000:], 1.5**-0.5, 1.0)
    # A state that comes from the hotter replica slows down.
    torch.testing.assert_close(velocity_scale, 1 / expected.double())


def chain() -> types.SimpleNamespace:
    """Five atoms in a row with two independent torsions: p(phi, psi) is exp(-U/kT) exactly."""
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i in range(4):
        bond.addBond(i, i + 1, 0.15, 1e5)
    for i in range(3):
        angle.addAngle(i, i + 1, i + 2, 1.9, 400)
    torsion.addTorsion(0, 1, 2, 3, 1, 0.0, 3 * KT)
    torsion.addTorsion(0, 1, 2, 3, 3, 0.0, 2.5 * KT)
    torsion.addTorsion(1, 2, 3, 4, 2, 1.0, 2 * KT)
    positions = [[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.14, 0.02], [0.4, 0.28, 0]]
    result = molecule(positions, [14.0] * 5, (bond, angle, torsion))
    result.torsions = {"phi": (0, 1, 2, 3), "psi": (1, 2, 3, 4)}
    return result


def gauche_population() -> float:
    """P(0 < phi < 120 degrees)."""

    def density(phi: float) -> float:
        return float(np.exp(-3 * (1 + np.cos(phi)) - 2.5 * (1 + np.cos(3 * phi))))

    return quad(density, 0, 2 * np.pi / 3)[0] / quad(density, -np.pi, np.pi, limit=200)[0]


@pytest.mark.parametrize("trajectory", [None, 25])
def test_sampling_under_a_bias_recovers_a_known_population(trajectory: int | None) -> None:
    """By Langevin dynamics at one temperature, and by parallel tempering of hybrid Monte Carlo."""
    system = chain()
    potential = CompiledPotential(system, compile=False)
    bias = sampling.learn_bias(
        system, potential, n_steps=2400, n_walkers=128, time_step=4, deposit_interval=20, grid_size=36, width=15, seed=1
    )
    # The bias undoes the barriers in phi, most of 11 kT with a bias factor of 10.
    assert 7 * KT < np.ptp(bias.grid) < 14 * KT
    options: dict[str, Any] = {"n_steps": 4000, "time_step": 4, "save_interval": 50, "seed": 2}
    if trajectory is None:
        run = sampling.flattened_sampling(system, potential, bias, n_walkers=256, n_groups=32, **options)
    else:
        options |= {"n_walkers": 256, "n_replicas": 3, "t_max": 450, "exchange_interval": 25, "trajectory": trajectory}
        run = sampling.parallel_tempering(system, potential, bias=bias, **options)
        assert "hybrid Monte Carlo" in run.report()
        assert "reweighted" in run.report()
    assert run.mass_metric == 0
    ensemble = run.ensemble
    x = torch.from_numpy(ensemble.positions).permute(2, 1, 0).contiguous()
    phi = sampling.torsion_angles(x, [system.torsions["phi"]]).numpy()[0]
    inside = (phi > 0) & (phi < 120)
    shares = []
    for group in np.unique(ensemble.groups):
        rows = ensemble.groups == group
        shares.append(ensemble.weights[rows & inside].sum() / ensemble.weights[rows].sum())
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert error < 0.1 * gauche_population()
    assert abs(ensemble.weights[inside].sum() - gauche_population()) < 4 * error
    # Unweighted, the basin is far more populated: the bias did something.
    assert inside.mean() > 1.5 * gauche_population()
    np.testing.assert_allclose(
        potential(torch.from_numpy(ensemble.positions[:50])).numpy(), ensemble.energies[:50], rtol=1e-4, atol=0.05
    )


def test_a_biased_ladder_has_no_frames_for_mbar() -> None:
    system = chain()
    bias = sampling.TorsionBias((system.torsions["phi"], system.torsions["psi"]), np.zeros((12, 12)))
    with pytest.raises(PotentialError, match="all_temperatures"):
        sampling.parallel_tempering(system, n_steps=100, bias=bias, all_temperatures=True)


def test_the_bias_is_a_spline_of_its_grid_and_can_be_changed() -> None:
    system = chain()
    potential = CompiledPotential(system, compile=False)
    grid = np.add.outer(np.cos(np.arange(36) * np.pi / 18), np.sin(np.arange(36) * np.pi / 9))
    atoms = (system.torsions["phi"], system.torsions["psi"])
    bias = sampling.TorsionBias(atoms, grid)
    x = torch.tensor(system.positions._value)[None] + 0.03 * torch.randn(20, 5, 3, generator=generator(1))
    layout = x.permute(2, 1, 0).contiguous()
    phi, psi = torch.deg2rad(sampling.torsion_angles(layout.double(), atoms))
    torch.testing.assert_close(bias.energy(x), phi.cos() + (2 * psi).sin(), atol=1e-3, rtol=0)
    energy = sampling.BiasedEnergy(potential, sampling.TorsionBias(atoms, np.zeros((36, 36))), 0)
    before = energy.forces(layout.float())[0]
    energy.set_grid(grid)
    after = energy.forces(layout.float())[0]
    torch.testing.assert_close((after - before).double(), bias.energy(x), atol=2e-3, rtol=0)


def test_domain_is_that_of_the_structure() -> None:
    from boltzgen.molecule import Molecule

    alanine = Molecule.from_pdb("systems/alanine_dipeptide.pdb")
    inside = sampling.domain_of(alanine)
    x = np.array(alanine.positions._value)
    mirrored = x * [1, 1, -1]
    swapped = x.copy()
    swapped[[11, 12]] = x[[12, 11]]  # two hydrogens of one methyl
    assert inside(np.stack([x, mirrored, swapped])).tolist() == [True, False, False]


def test_settings_that_make_no_sense_are_refused() -> None:
    system = molecule([[0, 0, 0], [-0.1, 0, 0]], [20.0, 20.0])
    potential = Analytic(2, double_well)
    for message, options in {
        "t_max": {"n_steps": 100, "t_max": 200},
        "n_steps must be": {"n_steps": 0},
        "no frame was saved": {"n_steps": 100, "save_interval": 1000},
        "shape": {"n_steps": 100, "start": np.zeros((3, 3))},
        "trajectory must be": {"n_steps": 100, "trajectory": 0},
        "no multiple of trajectory=30": {"n_steps": 100, "trajectory": 30},
    }.items():
        with pytest.raises(PotentialError, match=message):
            sampling.parallel_tempering(system, potential, n_walkers=2, n_replicas=2, **options)
    with pytest.raises(PotentialError, match="shorter"):
        sampling.parallel_tempering(
            system, potential, n_steps=400, n_walkers=2, n_replicas=2, time_step=1e4, save_interval=100
        )
    with pytest.raises(PotentialError, match="budget"):
        sampling.reference(system, {}, budget="huge")


def test_no_reference_ships_for_an_unknown_system() -> None:
    assert sampling.shipped_reference(chain()) is None


@pytest.mark.slow
def test_openmmtools_gives_the_same_kind_of_run(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openmmtools")
    system = chain()
    run = sampling.openmmtools_tempering(
        system, n_iterations=30, steps_per_iteration=10, n_replicas=3, n_blocks=4, platform="Reference", seed=1
    )
    assert run.ensemble.positions.shape == (24, 5, 3)
    assert run.swap_acceptance.shape == (2,)
    assert np.isfinite(run.ensemble.positions).all()
    assert len(np.unique(run.ensemble.groups)) == 4
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_the_shipped_reference_is_converged_and_matched_by_system_and_temperature() -> None:
    from boltzgen.molecule import Molecule

    alanine = Molecule.from_pdb("systems/alanine_dipeptide.pdb")
    shipped = sampling.shipped_reference(alanine)
    assert shipped is not None
    basin = shipped.basin("C7ax", alanine.kT)
    assert basin.half_width_kT <= 0.05
    assert basin.low_kT < basin.delta_f_kT < basin.high_kT
    assert basin.delta_f_kT == pytest.approx(-np.log(basin.probability / (1 - basin.probability)))
    for check in ("starts", "half_time_step"):
        assert abs(shipped.checks[check]["difference_kT"]) <= shipped.checks[check]["half_width_kT"]
    assert shipped.ramachandran.shape == (72, 72)
    # The same basin from the picture: phi in cells of 5 degrees from -180; rounded to three digits.
    assert shipped.ramachandran[36:66].sum() == pytest.approx(basin.probability, rel=1e-2)
    assert sampling.shipped_reference(alanine.with_temperature(310 * unit.kelvin)) is None
