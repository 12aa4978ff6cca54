"""Frames to look at follow the weights, and there is a picture where there is no viewer."""

import base64
import io
import json
import subprocess
import sys

import matplotlib.image
import mdtraj
import numpy as np
import pytest
import torch
from picture_samples import bare_molecule, sample

from boltzgen import viewing
from boltzgen.ensemble import Ensemble
from boltzgen.errors import SelectionError, StructureError
from boltzgen.placement import regenerated


@pytest.fixture(scope="module")
def molecule():
    return bare_molecule()


@pytest.fixture(scope="module")
def samples(molecule):
    return sample(molecule)


def test_frames_by_weight_follow_the_weights(samples) -> None:
    ensemble, _, _ = samples
    chosen = viewing.choose_frames(ensemble, 200_000, "weight")
    share = np.bincount(chosen, minlength=400) / 200_000
    assert share[ensemble.weights == 0].sum() == 0
    # Five standard errors of a multinomial draw, for 400 samples at once.
    error = np.sqrt(ensemble.weights * (1 - ensemble.weights) / 200_000)
    assert (np.abs(share - ensemble.weights) <= 5 * error).all()


def test_random_frames_are_as_generated_but_never_broken(samples) -> None:
    ensemble, _, _ = samples
    positions = ensemble.positions.copy()
    positions[10] = np.nan
    broken = Ensemble(positions, ensemble.log_weights, ensemble.kT, molecule=ensemble.molecule)
    chosen = viewing.choose_frames(broken, 20_000, "random")
    assert set(range(400)) - set(chosen.tolist()) == {10}


def test_frames_of_a_basin_lie_in_it_and_have_weight(samples) -> None:
    ensemble, phi, _ = samples
    chosen = viewing.choose_frames(ensemble, 500, "0 < phi < 150")
    assert ((phi[chosen] > 0) & (phi[chosen] < 150)).all()
    assert (ensemble.weights[chosen] > 0).all()


def test_an_empty_or_unreadable_basin_says_so(samples) -> None:
    ensemble, _, _ = samples
    with pytest.raises(SelectionError, match=r"0 < phi < 1\b"):
        viewing.choose_frames(ensemble, 5, "0 < phi < 1")
    with pytest.raises(SelectionError):
        viewing.choose_frames(ensemble, 5, "phi <")
    with pytest.raises(ValueError, match="positive"):
        viewing.choose_frames(ensemble, 0)
    with pytest.raises(SelectionError, match="molecule"):
        viewing.view(Ensemble(ensemble.positions, ensemble.log_weights, ensemble.kT))


def test_the_heaviest_frames_stand_first_and_once(samples) -> None:
    ensemble, _, _ = samples
    chosen = viewing.choose_frames(ensemble, 9, "heaviest")
    weights = ensemble.weights[chosen]
    assert (np.diff(weights) <= 0).all()
    assert len(set(chosen.tolist())) == 9
    assert weights.min() >= np.sort(ensemble.weights)[-9]
    assert len(viewing.choose_frames(ensemble, 10_000, "heaviest")) == (ensemble.weights > 0).sum()


def test_outside_a_notebook_the_frames_are_superposed_and_can_be_saved(samples, molecule, tmp_path) -> None:
    ensemble, _, _ = samples
    shifted = Ensemble(ensemble.positions + 5.0, ensemble.log_weights, ensemble.kT, molecule=molecule)
    shown = viewing.view(shifted, 6)
    assert isinstance(shown, viewing.StructurePicture)
    heavy = molecule.heavy_atoms
    for frame in range(1, 6):  # superposed: no rigid motion brings the heavy atoms nearer
        before = np.sqrt(3 * ((shown.frames.xyz[frame, heavy] - shown.frames.xyz[0, heavy]) ** 2).mean())
        best = mdtraj.rmsd(shown.frames[frame], shown.frames[0], atom_indices=heavy)[0]
        assert before == pytest.approx(best, abs=1e-4)
    read = mdtraj.load(shown.save(tmp_path / "frames.pdb"))
    np.testing.assert_allclose(read.xyz, shown.frames.xyz, atol=1e-3)  # a PDB file has three decimals in ångström
    assert "frames.pdb" in repr(shown)


def test_the_picture_is_a_picture(samples, molecule) -> None:
    ensemble, _, _ = samples
    shown = viewing.view(ensemble, 2)
    image = matplotlib.image.imread(io.BytesIO(shown._repr_png_()))
    assert image.shape[2] == 4
    assert (image[..., 3] > 0).mean() > 0.02
    assert (image[0, 0, 3], image[-1, -1, 3]) == (0, 0)
    assert "data:image/png;base64," in shown._repr_html_()


def with_front_end(monkeypatch, tmp_path, version) -> None:
    """An nglview front end of some version, and no other, where JupyterLab looks for it."""
    nglview, paths = pytest.importorskip("nglview"), pytest.importorskip("jupyter_core.paths")
    folder = tmp_path / "labextensions" / "nglview-js-widgets"
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": version or nglview._frontend.__frontend_version__}))
    monkeypatch.setattr(paths, "jupyter_path", lambda name: [str(tmp_path / name)])
    monkeypatch.setattr(viewing, "_in_notebook", lambda: True)


def test_a_front_end_of_another_version_leaves_a_picture(samples, monkeypatch, tmp_path) -> None:
    with_front_end(monkeypatch, tmp_path, "0.0.1")
    shown = viewing.view(samples[0], 2)
    assert isinstance(shown, viewing.StructurePicture)
    assert "and 0.0.1 is installed" in repr(shown)


def displayed(monkeypatch, widget) -> dict:
    """What a cell that ends in the widget sends to the page."""
    display = pytest.importorskip("IPython.display")
    sent = []
    monkeypatch.setattr(display, "display", lambda data, raw: sent.append(data))
    widget._ipython_display_()
    return sent[0]


def test_in_a_notebook_a_widget_shows_the_frames(samples, monkeypatch, tmp_path) -> None:
    nglview = pytest.importorskip("nglview")
    ensemble, _, _ = samples
    with_front_end(monkeypatch, tmp_path, None)
    widget = viewing.view(ensemble, 7)
    assert isinstance(widget, nglview.NGLWidget)
    assert widget.max_frame == 6
    data = displayed(monkeypatch, widget)
    assert "application/vnd.jupyter.widget-view+json" in data
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(data["image/png"])))  # where no widget runs
    assert (image[..., 3] > 0).mean() > 0.02
    assert "frames.pdb" in data["text/plain"]
    assert isinstance(viewing.view(ensemble, 2, widget=False), viewing.StructurePicture)


def test_hydrogens_are_drawn_anew_on_fixed_heavy_atoms(generator, dipeptide) -> None:
    """Weights are exp(-U/kT) over the density of the hydrogens given the heavy atoms, which q splits into exactly."""
    ensemble = generator.sample(200)
    chosen = int(viewing.choose_frames(ensemble, 1, "heaviest")[0])
    found = regenerated(generator, ensemble.positions[chosen], 300, seed=3)
    heavy, hydrogens = dipeptide.heavy_atoms, dipeptide.hydrogens
    np.testing.assert_allclose(found.positions[:, heavy], found.positions[:1, heavy].repeat(len(found), 0), atol=1e-6)
    assert found.positions[:, hydrogens].std(axis=0).max() > 0.01
    whole = generator.log_prob(torch.as_tensor(found.positions)).detach().double().numpy()
    rest = whole - found.log_q  # log-density of the heavy atoms: the same for all
    assert np.ptp(rest) < 0.01 < np.ptp(whole)
    np.testing.assert_allclose(found.energies, generator.energies(found.positions), rtol=1e-6)
    shown = viewing.view_hydrogens(generator, ensemble, 12)
    assert len(shown.frames) == 12
    with pytest.raises(StructureError, match="shape"):
        regenerated(generator, ensemble.positions[0, 1:])


def test_a_broken_nglview_leaves_a_picture(samples, monkeypatch) -> None:
    ensemble, _, _ = samples
    monkeypatch.setattr(viewing, "_in_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "nglview", None)
    shown = viewing.view(ensemble, 2)
    assert isinstance(shown, viewing.StructurePicture)
    assert "nglview" in repr(shown)


def test_importing_the_package_and_the_viewer_loads_no_heavy_module() -> None:
    code = (
        "import sys, boltzgen, boltzgen.viewing, boltzgen.report\n"
        "print([m for m in ('nglview', 'mdtraj', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
