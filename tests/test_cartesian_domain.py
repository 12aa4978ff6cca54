"""The domain of Cartesian generators: mirror images and cis amides have weight zero, log Z is that of the domain."""

import math

import numpy as np
import pytest
import torch
from small_molecules import harmonic_molecule

import boltzgen as bg
from boltzgen.energy import CompiledPotential
from boltzgen.energy.orientation import log_rigid_integral
from boltzgen.errors import PotentialError, StructureError
from boltzgen.flows.molecular import GeneratorConfig

SMALL = GeneratorConfig(cartesian_rounds=1, cartesian_hidden=8, placement_hidden=8, stiff_hidden=16, stiff_layers=2)
MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def cartesian(dipeptide, potential):
    return bg.BoltzmannGenerator.for_molecule(
        dipeptide, potential, coordinates="cartesian", config=SMALL, dtype=torch.float64, seed=3
    )


@pytest.fixture(scope="module")
def samples(cartesian):
    return cartesian.sample_and_log_prob(200)


def turned_about(chart, name, positions):
    """Positions with the coordinate of that name half a turn away."""
    column = next(i for i, row in enumerate(chart.rows) if row.name == name)
    coordinates = chart.internal.to_internal(positions)[0]
    coordinates[:, column] += math.pi
    return chart.internal.to_cartesian(coordinates)[0]


def test_samples_inside_are_unchanged(cartesian, potential, dipeptide, samples):
    positions, log_q = samples
    inside = cartesian.contains(positions.numpy())
    assert inside.mean() > 0.9
    expected = potential(positions) / dipeptide.kT + cartesian.alignment(positions)
    assert torch.equal(cartesian.reduced_energy(positions)[inside], expected[inside])
    found = cartesian.weigh(positions, log_q)
    # the terms of the sum come in another order
    np.testing.assert_allclose(found.log_weights[inside], (-expected - log_q)[inside].numpy(), rtol=1e-14)
    assert np.isneginf(found.log_weights[~inside]).all()
    assert found.n_infinite == int((~inside).sum())


def test_mirror_images_and_cis_amides_have_weight_zero(cartesian, potential, dipeptide, samples):
    chart = cartesian.coordinates
    here = samples[0][cartesian.contains(samples[0].numpy())][:20]
    free = bg.BoltzmannGenerator.for_molecule(
        dipeptide,
        potential,
        coordinates="cartesian",
        config=GeneratorConfig(omega="free", cartesian_rounds=1, cartesian_hidden=8),
        dtype=torch.float64,
    )
    for there, in_free in ((MIRROR * here, False), (turned_about(chart, "omega[1]", here), True)):
        assert bool(torch.isfinite(potential(there)).all())  # it is the domain that leaves them out
        assert not cartesian.contains(there.numpy()).any()
        assert bool((cartesian.reduced_energy(there) == torch.inf).all())
        log_q = torch.zeros(40, dtype=torch.float64)
        found = cartesian.weigh(torch.cat([here, there]), log_q)
        assert np.isfinite(found.log_weights[:20]).all()
        assert np.isneginf(found.log_weights[20:]).all()
        assert found.n_infinite == 20
        assert len(found) == 40
        assert np.isposinf(cartesian.log_weights_of(there.numpy(), np.zeros(20))).all()
        assert free.contains(there.numpy()).all() == in_free
    with pytest.raises(PotentialError, match="outside the domain"):
        cartesian.weigh(MIRROR * here, torch.zeros(20, dtype=torch.float64))
    with pytest.raises(StructureError, match="outside the generator's domain"):
        bg.pretrain(cartesian, (MIRROR * here).numpy(), n_steps=1)


def test_relabelled_methyls_are_inside(cartesian, samples):
    """Hydrogens of a methyl in cyclic order are the same configuration; two exchanged are a mirror image."""
    here = samples[0][cartesian.contains(samples[0].numpy())][:20].numpy()
    group = cartesian.coordinates.symmetry[0]
    a, b = group.members[:2]
    exchanged = here.copy()
    exchanged[:, [a, b]] = here[:, [b, a]]
    assert cartesian.contains(here[:, list(group.permutation)]).all()
    assert not cartesian.contains(exchanged).any()


def test_gradient_is_zero_outside_and_the_energys_own_inside(cartesian, potential, dipeptide, samples):
    here = samples[0][cartesian.contains(samples[0].numpy())][:6]
    positions = torch.cat([here, MIRROR * here]).requires_grad_(True)
    reduced = cartesian.reduced_energy(positions, 2 * dipeptide.kT)
    (gradient,) = torch.autograd.grad(reduced[torch.isfinite(reduced)].sum(), positions)
    _, forces = potential.energy_and_forces(here)
    _, pull = cartesian.alignment.value_and_gradient(here)
    torch.testing.assert_close(gradient[:6], pull - forces / (2 * dipeptide.kT))
    (all_of_them,) = torch.autograd.grad(cartesian.reduced_energy(positions).sum(), positions)
    assert not bool(all_of_them[6:].any())


@pytest.mark.parametrize("loss", ["l2+", "reverse-kl"])
def test_training_leaves_samples_outside_aside(dipeptide, potential, monkeypatch, loss):
    generator = bg.BoltzmannGenerator.for_molecule(
        dipeptide, potential, coordinates="cartesian", config=SMALL, dtype=torch.float64
    )
    drawn = generator.flow.sample_and_log_prob

    def half_of_them_mirrored(n_samples, rng=None):
        positions, log_q = drawn(n_samples, rng)
        return torch.cat([positions[::2], MIRROR * positions[1::2]]), log_q

    monkeypatch.setattr(generator.flow, "sample_and_log_prob", half_of_them_mirrored)
    before = [p.detach().clone() for p in generator.flow.parameters()]
    history = bg.finetune(generator, loss=loss, budget=128, batch_size=64, on_record=lambda *_: None, record_every=1)
    assert all(math.isfinite(record["loss"]) for record in history.records)
    assert all(bool(torch.isfinite(p).all()) for p in generator.flow.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, generator.flow.parameters(), strict=True))


def test_log_z_is_that_of_the_domain():
    """A chiral centre on springs, whose mirror image has the same energies: a flow of both hands finds Z, not 2 Z."""
    corners = 0.15 * np.array([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) / math.sqrt(3)
    positions = np.concatenate([np.zeros((1, 3)), corners])
    molecule = harmonic_molecule(["C", "C", "N", "O", "S"], [(0, k) for k in range(1, 5)], positions)
    potential = CompiledPotential(molecule)
    build = lambda coordinates: bg.BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates=coordinates, config=SMALL, dtype=torch.float64, seed=1
    )
    internal, generator = build("internal"), build("cartesian")
    x, log_q = internal.sample_and_log_prob(5_000)
    truth = internal.weigh(x, log_q).log_z
    # a density on all coordinates: shapes of either hand, in orientations as the penalty has them
    both = generator.oriented(torch.cat([x, MIRROR * x]))
    torch.testing.assert_close(potential(both[5_000:]), potential(both[:5_000]))
    of_rigid_motion = -generator.alignment(both) - log_rigid_integral(generator.alignment, both)
    log_q_both = torch.cat([log_q, log_q]) - math.log(2) + of_rigid_motion
    found = generator.weigh(both, log_q_both).unbiased()
    assert found.n_infinite == 5_000
    assert found.log_z.value == pytest.approx(truth.value, abs=1e-6)
    generator.flow.region = None
    assert generator.weigh(both, log_q_both).unbiased().log_z.value == pytest.approx(truth.value + math.log(2))


def test_the_domain_is_said(cartesian, dipeptide, potential):
    text = cartesian.domain()
    assert "Chirality" in text
    assert "omega[1]" in text
    assert "weight zero" in text
    assert cartesian.coordinates.domain() in text
    internal = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, hydrogens="network", config=SMALL)
    assert "weight zero" not in internal.domain()
    assert "nm^24" in internal.domain()  # ten heavy atoms
