"""Ensembles as containers: slices, joins, files, tables, and how they show themselves."""

from dataclasses import replace

import numpy as np
import pytest

from boltzgen.ensemble import Ensemble
from boltzgen.ensemble_files import FORMATS
from boltzgen.errors import EstimateError, OutputError


@pytest.fixture(scope="module")
def ensemble(generator):
    return generator.sample(60)


def test_iteration_and_slices(ensemble):
    single = list(ensemble[:5])
    assert [len(one) for one in single] == [1] * 5
    np.testing.assert_array_equal(single[3].positions[0], ensemble.positions[3])
    assert len(ensemble[ensemble.log_weights > np.median(ensemble.log_weights)]) == 30


def test_halves_joined_are_the_whole(ensemble):
    whole = ensemble[:20] + ensemble[20:]
    for name in ("positions", "log_weights", "energies", "log_q"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(ensemble, name))
    assert whole.groups is None
    assert whole.dimension == ensemble[:20].dimension == 60  # 22 atoms
    with pytest.raises(EstimateError, match="dimension"):
        _ = ensemble + replace(ensemble, dimension=66)
    assert ensemble.resample(5).dimension is None
    assert whole.log_z.value == pytest.approx(ensemble.log_z.value)


def test_groups_stay_different_when_joined(ensemble):
    chains = [replace(ensemble[:10], kind="chain", groups=np.arange(10) % 2), replace(ensemble[10:20], kind="chain")]
    joined = Ensemble.concatenate(chains)
    assert list(np.unique(joined.groups)) == [0, 1, 2]
    assert joined.kind == "chain"
    with pytest.raises(EstimateError, match="kind"):
        _ = ensemble + chains[0]
    with pytest.raises(EstimateError, match="kT"):
        _ = ensemble + replace(ensemble, kT=1.0)
    with pytest.raises(EstimateError, match="kind must be"):
        replace(ensemble, kind="trajectory")


@pytest.mark.parametrize("format", FORMATS)
def test_files_bring_everything_back(ensemble, dipeptide, tmp_path, format):
    original = replace(ensemble, kind="particles", groups=np.arange(60) % 6, n_defects=2, evaluations=1234)
    loaded = Ensemble.load(original.save(tmp_path, format=format), dipeptide)
    # 1e-6 nm: nanometres to ångström and back in single precision; XTC and PDB round as their formats say.
    tolerance = {"xtc": 6e-4, "pdb": 6e-5, "npz": 0.0}.get(format, 1e-6)
    np.testing.assert_allclose(loaded.positions, original.positions, atol=tolerance, rtol=0)
    for name in ("log_weights", "energies", "log_q", "groups"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name))
    assert (loaded.kT, loaded.kind, loaded.n_defects, loaded.evaluations) == (original.kT, "particles", 2, 1234)
    assert loaded.molecule is dipeptide
    assert loaded.log_z.unit == original.log_z.unit == "nm^60"


def test_ensembles_without_a_molecule_are_saved_as_arrays(tmp_path):
    ensemble = Ensemble(np.random.default_rng(0).standard_normal((7, 1, 12)), np.arange(7.0), 1.0, target="double well")
    loaded = Ensemble.load(ensemble.save(tmp_path / "deep" / "folder", format="npz"))
    np.testing.assert_array_equal(loaded.positions, ensemble.positions)
    assert loaded.target == "double well"
    assert loaded.dimension is None
    with pytest.raises(OutputError, match="holds no ensemble"):
        Ensemble.load(tmp_path)
    with pytest.raises(OutputError, match="dcd, nc"):
        ensemble.save(tmp_path, format="gro")


def test_files_of_another_molecule_are_refused(ensemble, dipeptide, tmp_path):
    ensemble[:3].save(tmp_path)
    np.savez(tmp_path / "weights.npz", log_weights=np.zeros(4), kT=2.5)
    with pytest.raises(OutputError, match="4 samples"):
        Ensemble.load(tmp_path, dipeptide)


def test_table_with_variables(ensemble):
    table = ensemble.to_pandas("phi", "rg", "phi > 0")
    assert list(table.columns) == ["weight", "log_weight", "energy_kJ_per_mol", "log_q", "phi", "rg", "phi > 0"]
    np.testing.assert_array_equal(table["phi > 0"], table["phi"] > 0)
    assert table["weight"].sum() == pytest.approx(1)


def test_they_say_what_they_are(ensemble):
    shown = replace(ensemble, evaluations=60, n_lost=3)
    for text in (repr(shown), str(shown), shown._repr_html_()):
        for part in ("60 (independent)", "kT = 2.494", "ESS", "3 lost", "60 energy evaluations"):
            assert part in text
    assert "verdict" in str(shown)
    assert "2 groups" in repr(replace(ensemble, kind="chain", groups=np.arange(60) % 2))
