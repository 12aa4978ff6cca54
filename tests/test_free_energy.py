"""Free energies: known populations, calibrated intervals, chains that are not independent, ensembles on disk."""

import math
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from openmm import unit

from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.free_energy import free_energy_of, log_z

KT = 2.494


def weighted(n, rng, share=0.1):
    """Samples of q = a fair coin with noisy weights, of a target with P(heads) = share. Returns ensemble, heads."""
    heads = rng.random(n) < 0.5
    noise = 0.5 * rng.standard_normal(n) - 0.125  # E[exp noise] = 1
    log_weights = np.log(np.where(heads, share, 1 - share) / 0.5) + noise
    return Ensemble(np.zeros((n, 1, 3)), log_weights, KT), heads


def test_basin_free_energy_and_its_units():
    ensemble, heads = weighted(200_000, np.random.default_rng(0))
    result = free_energy_of(ensemble, heads, "heads")
    truth = -math.log(0.1 / 0.9)
    assert result.delta_f_kT == pytest.approx(truth, abs=0.03)
    assert result.delta_f_kJ_per_mol == pytest.approx(result.delta_f_kT * KT)
    assert result.delta_f_kcal_per_mol == pytest.approx(result.delta_f_kT * KT / 4.184)
    assert set(result.to_dict()) >= {"probability", "delta_f_kT", "delta_f_kT_low", "delta_f_kT_high"}


def test_intervals_cover_the_truth_as_often_as_they_say():
    """600 repetitions: 95 % coverage within three binomial standard errors (0.9 % each)."""
    rng = np.random.default_rng(1)
    truth, hits, hits_z = -math.log(0.1 / 0.9), 0, 0
    for _ in range(600):
        ensemble, heads = weighted(2_000, rng)
        result = free_energy_of(ensemble, heads, "heads")
        hits += result.low <= truth <= result.high
        z = log_z(ensemble.log_weights)
        hits_z += z.low <= 0 <= z.high
    assert hits / 600 == pytest.approx(0.95, abs=0.027)
    assert hits_z / 600 == pytest.approx(0.95, abs=0.027)


def test_correlated_samples_get_the_error_of_their_groups():
    """Each walker repeats one draw 100 times: 40 independent values, not 4,000."""
    rng = np.random.default_rng(2)
    truth, hits = 0.0, 0
    for _ in range(300):
        heads = np.repeat(rng.random(400) < 0.5, 100)
        groups = np.repeat(np.arange(40), 1000)
        ensemble = Ensemble(np.zeros((40_000, 1, 3)), np.zeros(40_000), KT, groups=groups)
        result = free_energy_of(ensemble, heads, "heads")
        hits += result.low <= truth <= result.high
    assert hits / 300 == pytest.approx(0.95, abs=0.04)


def test_an_empty_basin_is_infinite_and_unbounded():
    ensemble, _ = weighted(1000, np.random.default_rng(3))
    result = free_energy_of(ensemble, np.zeros(1000, bool))
    assert (result.probability, result.delta_f_kT, result.high_kT) == (0.0, math.inf, math.inf)


@pytest.fixture(scope="module")
def ensemble(generator):
    return generator.sample(200)


def test_named_basin_by_expression(ensemble, dipeptide):
    result = ensemble.free_energy({"right": "phi > 0", "left": "phi <= 0"})
    assert result["right"].probability + result["left"].probability == pytest.approx(1)
    phi = np.degrees(mdtraj.compute_phi(ensemble.trajectory)[1][:, 0])
    assert result["right"].probability == pytest.approx(ensemble.weights[phi > 0].sum(), abs=1e-6)
    assert "verdict" in str(result)


def test_ensemble_weights_are_those_of_openmm(ensemble, dipeptide):
    import openmm

    context = openmm.Context(
        dipeptide.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for i in range(5):
        context.setPositions(ensemble.positions[i].astype(float))
        energy = context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert ensemble.energies[i] == pytest.approx(energy, abs=1e-6 * max(1, abs(energy)))
        assert ensemble.log_weights[i] == pytest.approx(-energy / dipeptide.kT - ensemble.log_q[i], rel=1e-9)


def test_saved_files_hold_the_same_samples(ensemble, tmp_path):
    folder = ensemble.save(tmp_path / "samples")
    trajectory = mdtraj.load(str(folder / "samples.dcd"), top=str(folder / "topology.pdb"))
    np.testing.assert_allclose(trajectory.xyz, ensemble.positions, atol=1e-6)
    with np.load(folder / "weights.npz") as arrays:
        np.testing.assert_array_equal(arrays["log_weights"], ensemble.log_weights)
    assert sorted(path.name for path in folder.iterdir()) == ["samples.dcd", "topology.pdb", "weights.npz"]


def test_perturbation_of_a_harmonic_well():
    """From stiffness 4 to 6 in three dimensions: ΔF = 1.5 kT ln(6/4)."""
    from analytic import GaussianFlow, Harmonic

    from boltzgen.free_energy import perturb
    from boltzgen.generator import BoltzmannGenerator

    generator = BoltzmannGenerator(GaussianFlow(log_scale=-0.6), Harmonic(4.0), kT=1.0)
    hits, truth = 0, 1.5 * math.log(6 / 4)
    for _ in range(200):
        result = perturb(generator.sample(1000), Harmonic(6.0))
        hits += result.low <= truth <= result.high
    assert hits / 200 == pytest.approx(0.95, abs=0.046)
    assert result.verdict.verdict.startswith("consistent")


def test_slices_and_resampling(ensemble):
    part = ensemble[10:20]
    assert len(part) == 10
    np.testing.assert_array_equal(part.log_weights, ensemble.log_weights[10:20])
    equal = ensemble.resample(50)
    assert equal.ess_fraction == pytest.approx(1)
    assert len(np.unique(equal.groups)) == len(np.unique(equal.energies))  # copies are one independent sample
    defective = replace(ensemble, n_defects=2)
    assert defective[:50].n_defects == 2
    assert defective.resample(50).verdict().verdict == "do not use"


def test_an_ensemble_without_molecule_has_no_trajectory():
    with pytest.raises(StructureError, match="no molecule"):
        _ = Ensemble(np.zeros((1, 1, 3)), np.zeros(1), KT).trajectory
