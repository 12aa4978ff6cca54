"""Generators that know their temperature: exact densities, known log Z at every temperature, training, files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from openmm import unit
from small_molecules import harmonic_molecule

from boltzgen.energy import CompiledPotential
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.training import Stage, Training

SMALL = GeneratorConfig(
    torsion_layers=2,
    torsion_hidden=16,
    stiff_layers=2,
    stiff_hidden=16,
    hydrogen_hidden=16,
    temperature_range=(300.0, 1200.0),
)
KELVIN = (300.0, 550.0, 1200.0)


@pytest.fixture(scope="module")
def chain():
    """A bent chain C-C-C-C-H of harmonic bonds and angles: no branches, so all its coordinates are independent."""
    positions = np.array([(0, 0, 0), (0.15, 0, 0), (0.2, 0.14, 0), (0.34, 0.16, 0.05), (0.38, 0.26, 0.04)])
    molecule = harmonic_molecule(["C", "C", "C", "C", "H"], [(0, 1), (1, 2), (2, 3), (3, 4)], positions)
    return molecule, CompiledPotential(molecule, compile=False)


def build(chain, config=SMALL, roughness=0.0):
    molecule, potential = chain
    generator = BoltzmannGenerator.for_molecule(molecule, potential, config=config, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(roughness * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return generator


def exact_log_z(generator, kelvin):
    """Sum of integrals in one dimension over the domain: r^2 dr, sin(theta) d theta, and free torsions."""
    kT = generator.kT * kelvin / 300.0
    total = 0.0
    for row in generator.coordinates.rows:
        if row.kind == "free torsion":
            total += math.log(2 * math.pi)
            continue
        strength, volume = (3e5, np.square) if row.kind == "bond" else (400.0, np.sin)
        value = row.centre + np.linspace(-row.limit, row.limit, 20_001)
        total += math.log(np.trapezoid(volume(value) * np.exp(-0.5 * strength * (value - row.centre) ** 2 / kT), value))
    return total


@pytest.mark.parametrize("kelvin", KELVIN)
def test_density_at_every_temperature(chain, kelvin):
    """Against the density returned with the sample, and against the Jacobian of the map from base variables."""
    generator = build(chain, roughness=0.15)
    flow, heat = generator.flow, kelvin / 300.0
    positions, log_q = generator.sample_and_log_prob(500, temperature=kelvin)
    with torch.no_grad():
        assert float((generator.log_prob(positions, temperature=kelvin) - log_q).abs().max()) < 1e-8
        other = generator.log_prob(positions, temperature=800.0)
    assert float((other - log_q).abs().mean()) > 0.1
    sizes = [flow._n_torsions[0], flow._n_stiff[0], flow._n_torsions[1], flow._n_stiff[1]]
    rng = torch.Generator().manual_seed(0)
    draws = [(torch.randn if k % 2 else torch.rand)(size, generator=rng).double() for k, size in enumerate(sizes)]

    def internal_of(base):
        given = iter(base.unsqueeze(1).split(sizes))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rand", "randn"):
                patch.setattr(torch, name, lambda *shape, **options: next(given))
            return flow.sample_internal(1, heat=heat)[0][0]

    base = torch.cat(draws)
    jacobian = torch.autograd.functional.jacobian(internal_of, base)
    normal = -0.5 * sum(float((part.square() + math.log(2 * math.pi)).sum()) for part in (draws[1], draws[3]))
    with torch.no_grad():
        found = float(flow.log_prob_internal(internal_of(base)[None], heat))
    assert abs(found - (normal - float(torch.linalg.slogdet(jacobian).logabsdet))) < 1e-8


def test_log_z_of_a_harmonic_molecule_at_every_temperature(chain):
    """Untrained, its widths go with the square root of the temperature: nearly the target. log Z to 4 standard errors.

    The change of log Z from the lowest to the highest temperature is that of the integrals, 7/2 ln(4) but for the
    volume elements.
    """
    generator = build(chain)
    found = []
    for kelvin in KELVIN:
        ensemble = generator.sample(20_000, temperature=kelvin * unit.kelvin)
        assert ensemble.kT == pytest.approx(generator.kT * kelvin / 300.0)
        assert ensemble.ess_fraction > 0.95
        weights = np.exp(ensemble.log_weights - ensemble.log_weights.max())
        error = weights.std() / weights.mean() / math.sqrt(len(weights))
        found.append(math.log(weights.mean()) + ensemble.log_weights.max())
        assert abs(found[-1] - exact_log_z(generator, kelvin)) < 4 * error + 1e-6
    assert found[2] - found[0] == pytest.approx(3.5 * math.log(4), abs=0.05)


def test_the_molecules_temperature_is_the_default(chain):
    generator = build(chain, roughness=0.3)
    positions, log_q = generator.sample_and_log_prob(20)
    with torch.no_grad():
        assert torch.equal(generator.log_prob(positions), generator.log_prob(positions, temperature=300))
        # one temperature each
        heats = torch.tensor([1.0, 2.0]).repeat(10).double()
        mixed = generator.flow.log_prob(positions, heats)
        hot = generator.log_prob(positions, temperature=600)
    torch.testing.assert_close(mixed[::2], log_q[::2], rtol=0, atol=1e-9)
    torch.testing.assert_close(mixed[1::2], hot[1::2], rtol=0, atol=1e-9)


def fitted(chain, loss, monkeypatch):
    """ESS at 300 and 1200 K before and after 60 steps, and the temperatures of the steps over 300 K."""
    generator, heats = build(chain, roughness=0.1), []
    before = [generator.sample(2000, temperature=kelvin).ess_fraction for kelvin in (300, 1200)]
    forward = generator.flow.sample_and_log_prob
    training = Training(generator, [Stage("fit", loss, 60)], batch_size=256)
    with monkeypatch.context() as patch:
        recorded = lambda n, rng, heat: heats.append(heat) or forward(n, rng, heat)
        patch.setattr(generator.flow, "sample_and_log_prob", recorded)
        training.run()
    assert len(training.recent) == 8
    return before, [generator.sample(2000, temperature=kelvin).ess_fraction for kelvin in (300, 1200)], heats


@pytest.mark.parametrize("loss", ["reverse-kl", "l2+"])
def test_training_serves_every_temperature(chain, loss, monkeypatch):
    """A rough generator fits better at both ends, reproducibly; every second step is at the stage's temperature."""
    before, after, heats = fitted(chain, loss, monkeypatch)
    assert all(end > start + 0.1 for start, end in zip(before, after, strict=True))
    assert heats[::2] == [1.0] * 30
    assert 1 < min(heats[1::2]) < 1.5 < 3 < max(heats[1::2]) < 4
    assert fitted(chain, loss, monkeypatch)[1:] == (after, heats)


def test_without_a_range_nothing_knows_the_temperature(chain):
    generator = build(chain, replace(SMALL, temperature_range=None))
    conditional = build(chain)
    n_inputs = [flow.heavy.stiff.layers[0].network[0].in_features for flow in (generator.flow, conditional.flow)]
    assert n_inputs[1] == n_inputs[0] + 1
    for call in (generator.sample, generator.sample_and_log_prob):
        with pytest.raises(ValueError, match="temperature_range"):
            call(10, temperature=400)


def test_temperatures_that_make_no_sense(chain):
    molecule, potential = chain
    with pytest.raises(ValueError, match="outside the temperature range 300 to 1200 K"):
        build(chain).sample(10, temperature=1500)
    with pytest.raises(ValueError, match="lowest and the highest"):
        GeneratorConfig(temperature_range=(1200, 300))
    config = replace(SMALL, temperature_range=(400, 1200))
    with pytest.raises(ValueError, match="leaves out the temperature of the molecule, 300 K"):
        BoltzmannGenerator.for_molecule(molecule, potential, config=config)
    with pytest.raises(ValueError, match="coordinates='internal'"):
        BoltzmannGenerator.for_molecule(molecule, potential, config=SMALL, hydrogens="network")


def test_range_is_saved_with_the_model(chain, tmp_path):
    generator = build(chain, roughness=0.3)
    generator.save(tmp_path / "model.safetensors")
    loaded = BoltzmannGenerator.load(tmp_path / "model.safetensors")
    assert loaded.flow.config == generator.flow.config
    for ours, theirs in zip(*(g.sample_and_log_prob(20, temperature=700) for g in (generator, loaded)), strict=True):
        assert torch.equal(ours, theirs)
