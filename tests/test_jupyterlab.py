"""The viewer draws a molecule in JupyterLab, in a real browser."""

from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest

pytest.importorskip("jupyterlab")
pytest.importorskip("websocket")
lab_browser = pytest.importorskip("lab_browser")

CELLS = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    "from picture_samples import bare_molecule, sample\n"
    "ens = sample(bare_molecule())[0]",
    "ens.view(n=5)",
    "ens.view(n=5, widget=False)",
)
FAILED = "document.body.innerText.includes('Click to show javascript error')"
CANVAS = "document.querySelector('.jp-OutputArea-output canvas')"
BOX = f"(() => {{ const b = {CANVAS}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] }})()"


def coloured(pixels: np.ndarray) -> dict[str, float]:
    """Shares of the pixels that are clearly red (oxygen), blue (nitrogen), grey (carbon), and neither paper nor ink."""
    r, g, b = np.moveaxis(pixels.astype(float), -1, 0)
    grey = (np.ptp(pixels, axis=-1) < 0.06) & (r > 0.25) & (r < 0.75)
    return {
        "red": float(((r - np.maximum(g, b)) > 0.25).mean()),
        "blue": float(((b - np.maximum(r, g)) > 0.25).mean()),
        "grey": float(grey.mean()),
    }


def run_all(page) -> None:
    """Run every cell; asked again until it begins, for a notebook looks idle before its kernel is there."""
    begun = "[...document.querySelectorAll('.jp-InputPrompt')].some(prompt => /[*0-9]/.test(prompt.innerText))"
    page.wait_for("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")
    for _ in range(60):
        page.value("new Promise(done => setTimeout(done, 3000))")
        if page.value(begun):
            return
        page.value("document.querySelector('.jp-Dialog .jp-mod-accept')?.click()")  # which kernel, if it asks
        page.value("void jupyterapp.commands.execute('notebook:run-all-cells')")
    raise AssertionError("the cells did not run")


@pytest.mark.slow
@pytest.mark.skipif(lab_browser.CHROMIUM is None, reason="no Chromium on this machine")
def test_the_widget_draws_a_molecule_in_jupyterlab(tmp_path, pytestconfig):
    if not pytestconfig.getoption("--browser"):
        pytest.skip("waits minutes for a browser on a busy machine: make browser")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "view.ipynb"
    nbformat.write(notebook, path)
    with lab_browser.lab_page(path) as page:
        run_all(page)
        page.wait_for(f"!!{CANVAS} || {FAILED}")
        assert not page.value(FAILED)
        page.wait_for("document.querySelectorAll('.jp-OutputArea-output img').length > 0")
        page.value(f"{CANVAS}.scrollIntoView({{block: 'center'}})")
        drawn = {}
        for _ in range(60):  # the scene is built some frames after the canvas
            x, y, width, height = page.value(BOX)
            pixels = page.picture({"x": x, "y": y, "width": width, "height": height})
            drawn = coloured(pixels)
            if min(drawn.values()) > 5e-4:
                break
            page.value("new Promise(done => setTimeout(done, 500))")
    shot = tmp_path / "widget.png"
    matplotlib.image.imsave(shot, pixels)
    assert min(width, height) > 100
    assert min(drawn.values()) > 5e-4, f"{drawn}: no molecule in {shot}"
    assert np.ptp(pixels[:3].reshape(-1, 3), axis=0).max() < 0.05  # the edge is paper: the molecule is whole
