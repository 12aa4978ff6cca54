"""Pictures show the numbers they should: weighted, complete, beside the reference."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import mdtraj
import numpy as np
import pytest
from picture_samples import CENTRES, bare_molecule, configurations, history, record, sample

from boltzgen import plotting
from boltzgen.ensemble import Ensemble
from boltzgen.errors import SelectionError
from boltzgen.training import History


@pytest.fixture(scope="module")
def molecule():
    return bare_molecule()


@pytest.fixture(scope="module")
def samples(molecule):
    return sample(molecule)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def legend_text(ax) -> str:
    return "\n".join(text.get_text() for text in ax.get_legend().get_texts())


def test_torsion_angles_are_those_of_mdtraj_and_of_the_construction(samples, molecule) -> None:
    ensemble, phi, psi = samples
    angles = plotting.torsion_angles(ensemble, "psi")
    other = np.degrees(mdtraj.compute_dihedrals(ensemble.trajectory, [molecule.torsions["psi"]])[:, 0])
    # mdtraj, which also measured the structure that was turned, computes in single precision.
    np.testing.assert_allclose(angles, other, atol=1e-2)
    np.testing.assert_allclose(angles, psi, atol=1e-3)
    np.testing.assert_allclose(plotting.torsion_angles(ensemble, "phi"), phi, atol=1e-3)


@pytest.mark.parametrize("weighted", [True, False])
def test_histogram_is_the_sum_of_weights_in_each_cell(samples, weighted) -> None:
    ensemble, phi, psi = samples
    expected = np.zeros((72, 72))
    share = ensemble.weights if weighted else np.full(ensemble.n, 1 / ensemble.n)
    for x, y, w in zip(phi, psi, share, strict=True):
        expected[np.flatnonzero(x == CENTRES)[0], np.flatnonzero(y == CENTRES)[0]] += w
    np.testing.assert_allclose(plotting.ramachandran_histogram(ensemble, weighted=weighted), expected, atol=1e-15)


def test_samples_of_weight_zero_change_no_weighted_picture_and_are_counted(samples, molecule) -> None:
    ensemble, _, _ = samples
    alive = ensemble[np.flatnonzero(ensemble.weights > 0)]
    np.testing.assert_allclose(
        plotting.ramachandran_histogram(ensemble), plotting.ramachandran_histogram(alive), atol=1e-15
    )
    ax = plotting.ramachandran(ensemble)
    assert any("3 of 400 samples of weight zero" in text.get_text() for text in ax.texts)
    assert not plotting.ramachandran(alive).texts


def test_map_is_minus_log_p_above_its_minimum_with_phi_along_x(samples) -> None:
    ensemble, _, _ = samples
    ax = plotting.ramachandran(ensemble)
    shown = np.ma.filled(ax.collections[0].get_array().reshape(72, 72), np.nan).T
    histogram = plotting.ramachandran_histogram(ensemble)
    visited = histogram > 0
    np.testing.assert_allclose(shown[visited], -np.log(histogram[visited] / histogram.max()), atol=1e-12)
    assert np.isnan(shown[~visited]).all()
    assert "phi" in ax.get_xlabel()
    assert "degrees" in ax.get_xlabel()


def test_reference_may_be_samples_or_their_histogram(samples, molecule) -> None:
    ensemble, _, _ = samples
    reference, _, _ = sample(molecule, 500, seed=1)
    levels = []
    for given in (reference, plotting.ramachandran_histogram(reference)):
        contours = plotting.ramachandran(ensemble, reference=given).collections[-1]
        levels.append([path.vertices for path in contours.get_paths()])
    for first, second in zip(*levels, strict=True):
        np.testing.assert_allclose(first, second)


def test_contours_close_across_the_periodic_edge(samples) -> None:
    ensemble, _, _ = samples
    grid = np.radians(CENTRES)
    histogram = np.exp(4.0 * (np.cos(grid - np.pi)[:, None] + np.cos(grid - np.pi)[None, :]))
    contour = plotting.ramachandran(ensemble, reference=histogram, max_kT=2.0).collections[-1]
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    assert vertices.min() < -178
    assert vertices.max() > 178


def test_wrong_reference_shape_and_unknown_torsion_are_refused(samples) -> None:
    ensemble, _, _ = samples
    with pytest.raises(ValueError, match="36"):
        plotting.ramachandran(ensemble, reference=np.ones((36, 36)))
    with pytest.raises(SelectionError, match="phi"):
        plotting.torsion_angles(ensemble, "chi1")
    with pytest.raises(SelectionError, match="distance"):
        plotting.torsion_angles(ensemble, "distance(0, 5)")
    with pytest.raises(SelectionError):
        plotting.torsion_angles(Ensemble(ensemble.positions, ensemble.log_weights, 2.5), "phi")


def test_no_sample_with_weight_is_an_error_not_an_empty_picture(samples) -> None:
    ensemble, _, _ = samples
    dead = Ensemble(ensemble.positions, np.full(400, -np.inf), ensemble.kT, ensemble.energies, ensemble.log_q)
    for draw in (plotting.weights, plotting.energy_histogram):
        with pytest.raises(ValueError, match="log-weight"):
            draw(dead)


def test_marginals_integrate_to_one_and_the_weighted_one_is_the_histogram(samples) -> None:
    ensemble, phi, _ = samples
    raw, reweighted = plotting.torsion_marginal(ensemble, "phi", bins=72).patches
    expected = np.array([ensemble.weights[phi == centre].sum() for centre in CENTRES]) / 5.0
    np.testing.assert_allclose(reweighted.get_data().values, expected, atol=1e-12)
    assert raw.get_data().values.sum() * 5.0 == pytest.approx(1.0)


def test_positions_that_are_not_finite_are_counted(samples) -> None:
    ensemble, _, _ = samples
    positions = ensemble.positions.copy()
    positions[:3] = np.nan
    broken = Ensemble(positions, ensemble.log_weights, ensemble.kT, ensemble.energies, None, ensemble.molecule)
    raw = plotting.ramachandran_histogram(broken, weighted=False)
    assert raw.sum() == pytest.approx(1 - 3 / 400)
    assert "3 samples not finite" in legend_text(plotting.torsion_marginal(broken, "phi"))


def test_bootstrap_band_has_the_width_of_the_binomial_error(molecule) -> None:
    """Equal weights, two bins: the error of ln P is sqrt((1-P)/(P n)), and the band spans 2 x 1.96 of it."""
    n, p = 4000, 0.3
    phi = np.where(np.arange(n) < p * n, -92.5, 92.5)
    two = configurations(molecule, np.array([-92.5, 92.5]), np.zeros(2))
    ensemble = Ensemble(two[(phi > 0).astype(int)], np.zeros(n), molecule.kT, molecule=molecule)
    ax = plotting.free_energy_profile(ensemble, "phi", bins=2, replicates=2000)
    band = ax.collections[0].get_paths()[0].vertices
    at_left = np.unique(band[np.isclose(band[:, 0], -90.0), 1])
    line = ax.lines[0].get_ydata()
    np.testing.assert_allclose(line, [np.log((1 - p) / p), 0.0], atol=1e-12)
    width = at_left.max() - at_left.min()
    # 2000 replicates fix a 95 % width to about 3 %.
    assert width == pytest.approx(2 * 1.96 * np.sqrt((1 - p) / (p * n)), rel=0.12)


def test_energy_densities_count_what_the_axis_does_not_show(samples, molecule) -> None:
    ensemble, _, _ = samples
    energies = ensemble.energies.copy()
    energies[5:9] = 1e7
    log_weights = np.where(energies > 1e6, -np.inf, ensemble.log_weights)
    far = Ensemble(ensemble.positions, log_weights, ensemble.kT, energies, ensemble.log_q, molecule)
    ax = plotting.energy_histogram(far, far)
    assert ax.get_xlim()[1] < 100
    assert "3 infinite" in legend_text(ax)
    raw = ax.patches[0].get_data()
    low, high = raw.edges[0], raw.edges[-1]
    inside = ((energies >= low) & (energies <= high)).mean()
    assert (raw.values * np.diff(raw.edges)).sum() == pytest.approx(inside)
    assert f"{100 * (1 - inside - 3 / 400):.2g} % beyond" in legend_text(ax)
    assert "kJ/mol" in ax.get_xlabel()


def test_a_reference_without_energies_is_said(samples, molecule) -> None:
    ensemble, _, _ = samples
    reference = Ensemble(ensemble.positions, np.zeros(400), molecule.kT, molecule=molecule)
    assert "without energies" in legend_text(plotting.energy_histogram(ensemble, reference))
    with pytest.raises(ValueError, match="energies"):
        plotting.energy_histogram(reference)
    with pytest.raises(ValueError, match="log-density"):
        plotting.energy_correlation(reference)


def test_energy_correlation_of_a_perfect_generator_is_its_line(molecule) -> None:
    rng = np.random.default_rng(0)
    energies, log_z = rng.normal(0.0, 10.0, 300), 3.2
    log_q = -energies / molecule.kT - log_z
    perfect = Ensemble(np.zeros((300, 22, 3)), np.full(300, log_z), molecule.kT, energies, log_q, molecule)
    x, y = plotting.energy_correlation(perfect).lines[0].get_data()
    np.testing.assert_allclose(y, x - log_z, atol=1e-9)
    np.testing.assert_allclose([y.min(), y.max()], np.array([energies.min(), energies.max()]) / molecule.kT)


def test_weights_by_rank_are_in_units_of_their_mean(samples) -> None:
    ensemble, _, _ = samples
    ax = plotting.weights(ensemble)
    rank, shown = ax.lines[0].get_data()
    np.testing.assert_allclose(shown, np.sort(ensemble.weights)[::-1][:397] * 400)
    assert list(rank) == list(range(1, 398))
    assert "3 of weight zero" in legend_text(ax)
    assert f"Pareto k = {ensemble.pareto_k:.2f}" in ax.texts[0].get_text()


def test_training_curves_show_every_record_once_stage_by_stage() -> None:
    run = history()
    axes = plotting.training_curve(run)
    for ax, key in zip(axes, ("loss", "ess_fraction", "temperature"), strict=True):
        assert len(ax.lines) == 3
        np.testing.assert_allclose(
            np.concatenate([line.get_ydata() for line in ax.lines]), [r[key] for r in run.records]
        )
    np.testing.assert_allclose(
        np.concatenate([line.get_xdata() for line in axes[0].lines]), [r["energy_evaluations"] for r in run.records]
    )


@pytest.mark.parametrize("n", [1, 2])
def test_a_training_that_was_cut_short_has_its_curves(n) -> None:
    short = History([record("hot", 100 * (i + 1), float("nan") if i else 3.0, A=0.0) for i in range(n)])
    axes = plotting.training_curve(short)
    assert any("not finite" in text.get_text() for text in axes[0].texts) == (n == 2)
    assert f"{n} records at zero" in legend_text(plotting.populations(short))
    with pytest.raises(ValueError, match="empty"):
        plotting.training_curve(History([]))
    with pytest.raises(ValueError, match="basin"):
        plotting.populations(History([record("hot", 100)]))


def test_populations_follow_the_records_and_the_reference() -> None:
    run = history()
    ax = plotting.populations(run, reference={"C7ax": 0.0079})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [r["populations"]["C7ax"] for r in run.records])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 0.0079)


def test_pictures_draw_where_they_are_told(samples) -> None:
    ensemble, _, _ = samples
    mine = plt.figure().subplots(1, 3)
    assert plotting.ramachandran(ensemble, ax=mine[0]) is mine[0]
    assert plotting.weights(ensemble, mine[1]) is mine[1]
    assert plotting.torsion_marginal(ensemble, "psi", ax=mine[2]) is mine[2]
    assert len(plt.get_fignums()) == 1


def curve_named(ax, label):
    """Heights and edges of one stair."""
    (stairs,) = [patch for patch in ax.patches if str(patch.get_label()).startswith(label)]
    data = stairs.get_data()
    return data.values, data.edges


def test_marginal_is_the_weighted_histogram_of_any_variable(samples) -> None:
    ensemble, phi, _ = samples
    ax = plotting.marginal(ensemble, "phi", reference=ensemble, bins=72)
    heights, edges = curve_named(ax, "generated, reweighted")
    expected, _ = np.histogram(phi, edges, weights=ensemble.weights)
    np.testing.assert_allclose(heights * np.diff(edges), expected, atol=1e-12)
    np.testing.assert_allclose(curve_named(ax, "reference")[0], heights)
    raw, _ = curve_named(ax, "as generated")
    assert not np.allclose(raw, heights)
    assert "degrees" in ax.get_xlabel()


def test_marginal_says_what_lies_beyond_its_axis(samples) -> None:
    ensemble, _, _ = samples
    positions = ensemble.positions.copy()
    positions[0, 0] += 50.0
    log_weights = ensemble.log_weights.copy()
    log_weights[0] = log_weights.max() - 20
    far = Ensemble(positions, log_weights, ensemble.kT, molecule=ensemble.molecule)
    ax = plotting.marginal(far, "distance(0, 20)")
    assert "as generated (0.25 % beyond the axis" in legend_text(ax)
    assert "nm" in ax.get_xlabel()


def test_centres_of_mass_follow_a_displacement(samples) -> None:
    ensemble, _, _ = samples
    moved = Ensemble(
        ensemble.positions + [3.0, 0.0, 0.0], ensemble.log_weights, ensemble.kT, molecule=ensemble.molecule
    )
    here, there = (plotting.centres_of_mass(one).get_xlim() for one in (ensemble, moved))
    assert there[0] > here[1] + 1.0


def test_convergence_ends_at_the_estimate_of_all_samples(samples) -> None:
    ensemble, _, _ = samples
    whole = ensemble.free_energy({"A": "phi < 0"})["A"]
    ax = plotting.convergence(ensemble, "phi < 0", reference=(whole.low, whole.high))
    line = ax.get_lines()[0]
    assert line.get_xdata()[-1] == len(ensemble)
    assert line.get_ydata()[-1] == pytest.approx(whole.value)
    part = ensemble[:100].free_energy({"A": "phi < 0"})["A"]
    assert line.get_ydata()[0] == pytest.approx(part.value)
    with pytest.raises(ValueError, match="too few"):
        plotting.convergence(ensemble[:50], "phi < 0")


def test_convergence_refuses_chains_and_counts_what_is_undetermined(samples) -> None:
    ensemble, _, _ = samples
    chain = Ensemble(ensemble.positions, ensemble.log_weights, ensemble.kT, molecule=ensemble.molecule, kind="chain")
    with pytest.raises(ValueError, match="chain"):
        plotting.convergence(chain, "phi < 0")
    ax = plotting.convergence(ensemble, "distance(0, 1) < 50")
    assert "without a sample in the basin, or outside it" in legend_text(ax)
