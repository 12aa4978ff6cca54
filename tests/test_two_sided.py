"""BAR and MBAR between harmonic wells of known log Z: values, intervals, weights, and what pymbar says."""

import math
from dataclasses import replace

import numpy as np
import pymbar
import pytest
import torch
from analytic import GaussianFlow, Harmonic

from boltzgen import free_energy as fe
from boltzgen.ensemble import Ensemble
from boltzgen.errors import EstimateError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.free_energy.acceptance_ratio import Side, bennett, log_z_bar
from boltzgen.generator import BoltzmannGenerator
from boltzgen.uncertainty import Sampling

STIFFNESS = (4.0, 6.0, 9.0)


def truth(first, second):
    """ΔF in kT of three-dimensional wells: 1.5 ln(k2/k1)."""
    return 1.5 * math.log(second / first)


def boltzmann(stiffness, n, seed, copies=1):
    """Exact samples of the well, each repeated; nanometres, kT = 1."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((n // copies, 1, 3)) / math.sqrt(stiffness), copies, axis=0)
    energies = 0.5 * stiffness * np.square(x).sum((1, 2))
    groups = np.repeat(np.arange(n // copies), copies) if copies > 1 else None
    return Ensemble(
        x, np.zeros(n), 1.0, energies=energies, groups=groups, kind="chain" if copies > 1 else "independent"
    )


def generators():
    return [
        BoltzmannGenerator(GaussianFlow(log_scale=-0.5 * math.log(0.7 * k)), Harmonic(k), kT=1.0, seed=i)
        for i, k in enumerate(STIFFNESS)
    ]


def test_equal_weights_give_what_pymbar_gives():
    first, second = boltzmann(4.0, 3000, 0), boltzmann(9.0, 1000, 1)
    result = fe.bar(first, second, Harmonic(4.0), Harmonic(9.0))
    forward = 2.5 * np.square(first.positions).sum((1, 2))
    reverse = -2.5 * np.square(second.positions).sum((1, 2))
    expected = pymbar.other_estimators.bar(forward, reverse)
    assert result.value == pytest.approx(expected["Delta_f"], abs=1e-6)
    assert result.half_width == pytest.approx(1.96 * expected["dDelta_f"], rel=0.05)
    assert abs(result.value - truth(4, 9)) < 2 * result.half_width


def test_energies_of_many_samples_show_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setattr("boltzgen.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("boltzgen.free_energy.perturbation.BATCH", 100)
    first, second = boltzmann(4.0, 400, 0), boltzmann(9.0, 300, 1)
    both = [first, second], [Harmonic(4.0), Harmonic(9.0)]
    for estimate in (
        lambda **options: fe.bar(first, second, *both[1], **options),
        lambda **options: fe.mbar(*both, **options).difference(0, 1),
        lambda **options: fe.perturb(first, Harmonic(9.0), **options),
    ):
        silent = estimate()
        assert capsys.readouterr().err == ""
        assert estimate(progress=True).value == silent.value
        assert " left" in capsys.readouterr().err


def test_two_generators_and_their_weights():
    makers = generators()
    first, second = makers[0].sample(20_000), makers[2].sample(20_000)
    result = fe.bar(first, second, Harmonic(4.0), Harmonic(9.0))
    assert result.half_width < 0.05
    assert abs(result.value - truth(4, 9)) < 2 * result.half_width
    assert 0.3 < result.diagnostics["overlap"] < 1


def test_log_z_between_a_generator_and_reference_samples():
    maker = generators()[0]
    generated = maker.sample(20_000)
    reference = boltzmann(4.0, 5_000, 3)
    result = fe.bar_log_z(maker, generated, reference)
    assert abs(result.value - maker.potential.log_z) < 2 * result.half_width < 0.05
    assert log_z_bar(
        generated.log_weights, maker.log_weights_of(reference.positions, reference.energies), np.ones(5000)
    ) == pytest.approx(result.value)


def test_disjoint_states_are_refused():
    far = Side(np.full(100, np.inf), np.full(100, 0.01), Sampling())
    with pytest.raises(EstimateError, match="share no configuration"):
        bennett(far, far)
    with pytest.raises(EstimateError, match="temperature"):
        fe.bar(boltzmann(4.0, 100, 0), replace(boltzmann(4.0, 100, 1), kT=2.0), Harmonic(4.0), Harmonic(4.0))


def test_mbar_of_equal_weights_is_that_of_pymbar_with_its_errors():
    ensembles = [boltzmann(k, 1000, i) for i, k in enumerate(STIFFNESS)]
    potentials = [Harmonic(k) for k in STIFFNESS]
    result = fe.mbar(ensembles, potentials)
    theirs = pymbar.MBAR(**result.reduced.to_pymbar()).compute_free_energy_differences()
    for j in (1, 2):
        ours = result.difference(0, j)
        assert ours.value == pytest.approx(theirs["Delta_f"][0, j], abs=1e-6)
        assert ours.half_width == pytest.approx(1.96 * theirs["dDelta_f"][0, j], rel=0.05)
        assert abs(ours.value - truth(4.0, STIFFNESS[j])) < 2 * ours.half_width


def test_mbar_of_generators_is_absolute():
    """The densities of generators are normalised, so free energies of the wells are -log Z."""
    makers = generators()
    ensembles = [maker.sample(3000) for maker in makers]
    result = fe.mbar(ensembles, [maker.potential for maker in makers], makers, names=["soft", "middle", "stiff"])
    assert list(result.reduced.n_k) == [0, 0, 0, 3000, 3000, 3000]
    for name, maker in zip(("soft", "middle", "stiff"), makers, strict=True):
        absolute = result.difference("q of soft", name)
        assert abs(absolute.value + maker.potential.log_z) < 2 * absolute.half_width + 1e-9
    relative = result.difference("soft", "stiff")
    assert abs(relative.value - truth(4, 9)) < 2 * relative.half_width < 0.1
    with pytest.raises(EstimateError, match="known: soft"):
        result.difference("soft", "hard")


def test_mbar_counts_copies_once_and_resamples_weights():
    potentials = [Harmonic(4.0), Harmonic(9.0)]
    single = fe.mbar([boltzmann(4.0, 1000, 5), boltzmann(9.0, 1000, 6)], potentials).difference(0, 1)
    copies = fe.mbar([boltzmann(4.0, 10_000, 5, 10), boltzmann(9.0, 10_000, 6, 10)], potentials).difference(0, 1)
    assert copies.value == pytest.approx(single.value, abs=1e-6)
    assert copies.half_width == pytest.approx(single.half_width, rel=0.02)
    makers = generators()
    weighted = [makers[0].sample(4000), makers[2].sample(4000)]
    result = fe.mbar(weighted, potentials)
    assert result.reduced.n_k.sum() < 8000
    assert abs(result.difference(0, 1).value - truth(4, 9)) < 2 * result.difference(0, 1).half_width


def test_table_for_alchemlyb():
    ensembles = [boltzmann(k, 50 + i, i) for i, k in enumerate(STIFFNESS)]
    table = fe.reduced_energies(ensembles, [Harmonic(k) for k in STIFFNESS]).to_alchemlyb()
    assert table.shape == (153, 3)
    assert list(table.index.names) == ["time", "fep-lambda"]
    assert table.attrs["energy_unit"] == "kT"
    assert [len(part) for _, part in table.groupby(level="fep-lambda")] == [50, 51, 52]
    row = table.loc[(0.0, 1.0)]
    x = np.square(ensembles[1].positions[0]).sum()
    np.testing.assert_allclose(row, [0.5 * k * x for k in STIFFNESS], rtol=1e-6)


def test_log_z_of_a_cartesian_generator_with_turned_reference_samples():
    """Four carbons on springs: reference samples in any orientation give the log Z of internal coordinates."""
    from small_molecules import harmonic_molecule

    structure = np.array([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.15, 0.03]])
    molecule = harmonic_molecule(["C"] * 4, [(0, 1), (1, 2), (2, 3)], structure)
    config = GeneratorConfig(alignment=1e5, cartesian_rounds=1, cartesian_hidden=8, fold_symmetry=False)
    make = BoltzmannGenerator.for_molecule
    internal = make(molecule, config=config, seed=1).sample(8000)
    reference = internal.resample(5000, seed=2)
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((5000, 3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))[:, None, None]
    turned = replace(reference, positions=np.einsum("nij,nkj->nki", rotation, reference.positions) + 0.7)
    maker = make(molecule, coordinates="cartesian", config=config, dtype=torch.float64, seed=1)
    result = fe.bar_log_z(maker, maker.sample(10_000), turned)
    assert internal.log_z.half_width < 0.01
    assert abs(result.value - internal.log_z.value) < 2 * result.half_width < 0.3
