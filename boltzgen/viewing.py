"""Structures of an ensemble to look at: an interactive nglview widget in a notebook, a picture elsewhere."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boltzgen.errors import SelectionError

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule

__all__ = [
    "StructurePicture",
    "choose_frames",
    "chosen_frames",
    "hydrogen_frames",
    "structure_png",
    "view",
    "view_hydrogens",
]

logger = logging.getLogger(__name__)

# Jmol's colours, darkened where white paper would swallow them; radii in nm, for drawing only.
ELEMENT_COLOURS = {"H": "#e8e8e8", "C": "#555555", "N": "#3050f8", "O": "#e8220d", "S": "#d9b51c", "P": "#ff8000"}
ELEMENT_RADII = {"H": 0.022, "C": 0.034, "N": 0.034, "O": 0.034}
OTHER_COLOUR, OTHER_RADIUS = "#b050b0", 0.040
WAYS = ("weight", "random", "heaviest")  # to choose frames, beside basins


def view(ensemble: Ensemble, n: int = 50, by: str = "weight", *, seed: int = 0, widget: bool | None = None) -> Any:
    """Show frames of an ensemble, superposed on the heavy atoms.

    A notebook shows a widget only where it is the last expression of its cell. Where a page cannot run it (a viewer of
    files, a static page) the picture that comes along is shown.

    Parameters
    ----------
    ensemble : Ensemble
        With a molecule.
    n : int
        Number of frames.
    by : str
        ``"weight"``: drawn with replacement by importance weight, so that the frames follow the Boltzmann distribution;
        ``"random"``: as generated, every sample alike; ``"heaviest"``: those of largest weight, the largest first;
        otherwise a basin such as ``"0 < phi < 150"``: drawn by weight from the samples in it.
    seed : int
        Of the draw.
    widget : bool, optional
        False for a still picture even in a notebook; whatever can be had if absent.

    Returns
    -------
    nglview.NGLWidget or StructurePicture
        The widget in a notebook; outside one, or where nglview cannot be imported, a picture that also saves the
        frames as a PDB file.

    Raises
    ------
    SelectionError
        If the basin does not parse or holds no sample that could be drawn, or the ensemble has no molecule.
    ValueError
        If n is not positive.
    """
    frames = chosen_frames(ensemble, n, by, seed=seed)
    assert ensemble.molecule is not None
    return shown(ensemble.molecule, frames, widget)


def view_hydrogens(
    generator: BoltzmannGenerator,
    ensemble: Ensemble,
    n: int = 20,
    by: str = "heaviest",
    *,
    seed: int = 0,
    widget: bool | None = None,
) -> Any:
    """Show one configuration with its hydrogens drawn anew on fixed heavy atoms; see `boltzgen.placement.regenerated`.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``hydrogens="flow"``.
    ensemble : Ensemble
        Of the same molecule.
    n : int
        Number of frames, equally weighted among the hydrogens that the energy allows.
    by : str
        Which configuration: the first that `view` would show.
    seed, widget
        As in `view`, whose results these are.
    """
    frames = hydrogen_frames(generator, ensemble, n, by, seed=seed)
    return shown(ensemble.require_molecule(), frames, widget)


def hydrogen_frames(
    generator: BoltzmannGenerator, ensemble: Ensemble, n: int, by: str = "heaviest", *, seed: int = 0
) -> Any:
    """What `view_hydrogens` shows, as an ``mdtraj.Trajectory``; parameters and errors as there."""
    from boltzgen.placement import regenerated

    if n < 1:
        raise ValueError(f"the number of frames must be positive, not {n}")
    chosen = int(choose_frames(ensemble, 1, by, seed=seed)[0])
    return regenerated(generator, ensemble.positions[chosen], seed=seed).resample(n, seed).trajectory


def shown(molecule: Molecule, frames: Any, widget: bool | None = None) -> Any:
    """Frames as a widget in a notebook, and as a picture elsewhere; see `view`."""
    if widget is False:
        return StructurePicture(molecule, frames, "a picture was asked for")
    if not _in_notebook():
        return StructurePicture(molecule, frames, "not in a notebook")
    nglview = _quiet_nglview()
    if nglview is None:
        return StructurePicture(molecule, frames, "nglview could not be imported")
    if mismatch := front_end_mismatch(nglview):
        return StructurePicture(molecule, frames, mismatch)
    interactive = _with_picture(nglview)(molecule, frames)
    interactive.add_representation("ball+stick", selection="all")
    interactive.center()
    return interactive


def front_end_mismatch(nglview: Any) -> str:
    """Why JupyterLab would show an error in the place of nglview's widget; empty where nothing speaks against it.

    The wheel of nglview 4.0.1 asks for version 4.0 of its own JavaScript, and brings version 3.1.5.
    """
    wanted = getattr(getattr(nglview, "_frontend", None), "__frontend_version__", "")
    try:
        from jupyter_core.paths import jupyter_path

        folders = [Path(folder) / "nglview-js-widgets" for folder in jupyter_path("labextensions")]
        found = next(folder / "package.json" for folder in folders if (folder / "package.json").is_file())
        there = json.loads(found.read_text(encoding="utf-8"))["version"]
    except (ImportError, StopIteration, OSError, ValueError, KeyError):
        return ""  # another front end than JupyterLab's, of which nothing is known
    if not wanted or there == wanted:
        return ""
    return f"nglview asks for its front end {wanted}, and {there} is installed: pip install 'nglview!=4.0.1'"


def _with_picture(nglview: Any) -> Any:
    """nglview's widget, that brings a picture for pages that cannot run it."""

    class StructureWidget(nglview.NGLWidget):
        def __init__(self, molecule: Molecule, frames: Any) -> None:
            super().__init__(nglview.MDTrajTrajectory(frames), default_representation=False)
            self.__dict__["picture"] = StructurePicture(molecule, frames, "this page cannot run the viewer")

        def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
            picture: StructurePicture = self.__dict__["picture"]
            still = base64.b64encode(picture._repr_png_()).decode("ascii")
            return {**super()._repr_mimebundle_(**options), "image/png": still, "text/plain": repr(picture)}

        def _ipython_display_(self, **options: Any) -> None:  # nglview's own would leave the picture out
            from IPython.display import display

            display(self._repr_mimebundle_(), raw=True)

    return StructureWidget


def chosen_frames(ensemble: Ensemble, n: int, by: str = "weight", *, seed: int = 0) -> Any:
    """What `view` shows, as an ``mdtraj.Trajectory`` superposed on the heavy atoms; parameters and errors as there."""
    if ensemble.molecule is None:
        raise SelectionError("nothing to view: the ensemble has no molecule")
    return _superposed(ensemble, ensemble.molecule, choose_frames(ensemble, n, by, seed=seed))


def choose_frames(ensemble: Ensemble, n: int, by: str = "weight", *, seed: int = 0) -> NDArray[np.intp]:
    """Indices of the frames to show; parameters and errors as for `view`.

    Returns
    -------
    (n,) array of int
        A sample of large weight may stand in it more than once; of the heaviest there may be fewer than n.
    """
    if n < 1:
        raise ValueError(f"the number of frames must be positive, not {n}")
    share = np.isfinite(ensemble.positions).all(axis=(1, 2)).astype(float)
    if by != "random":
        share *= np.asarray(ensemble.unbiased().weights, dtype=float)
    if by not in WAYS:
        if ensemble.molecule is None:
            raise SelectionError(f"'{by}' selects nothing: the ensemble has no molecule")
        from boltzgen.collective_variables import parse_basin

        share *= np.asarray(parse_basin(by, ensemble.molecule).contains(ensemble.positions))
    if not share.sum() > 0:
        where = "" if by in WAYS else f" in '{by}'"
        raise SelectionError(f"no frame to show: no sample{where} has a positive weight and finite positions")
    if by == "heaviest":
        order = np.argsort(-share, kind="stable")[:n]
        return order[share[order] > 0]
    return np.random.default_rng(seed).choice(len(share), size=n, p=share / share.sum())


class StructurePicture:
    """Frames of an ensemble where there is no interactive viewer: a still picture, and a file for one.

    Parameters
    ----------
    molecule : Molecule
    frames : mdtraj.Trajectory
    reason : str
        Why there is no interactive view.
    """

    def __init__(self, molecule: Molecule, frames: Any, reason: str) -> None:
        self.molecule = molecule
        self.frames = frames
        self.reason = reason

    def save(self, path: str | Path) -> Path:
        """Write the frames as models of one PDB file, for PyMOL, VMD or ChimeraX; returns its path."""
        self.frames.save_pdb(str(path))
        return Path(path)

    def __repr__(self) -> str:
        return (
            f"<{len(self.frames)} frames of {self.frames.n_atoms} atoms; no interactive view ({self.reason}). "
            "Save them with .save('frames.pdb') and open that file in a molecular viewer.>"
        )

    def _repr_png_(self) -> bytes:
        return structure_png(self.molecule, self.frames.xyz[0])

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode("ascii")
        return (
            f'<figure><img alt="ball-and-stick picture of the first frame" src="data:image/png;base64,{picture}">'
            f"<figcaption>{html.escape(repr(self)[1:-1])}</figcaption></figure>"
        )


def structure_png(molecule: Molecule, positions: NDArray[Any], *, size: float = 3.2, dpi: int = 120) -> bytes:
    """Ball-and-stick picture of one configuration, seen along the axis in which it is flattest.

    Parameters
    ----------
    molecule : Molecule
        For elements and bonds.
    positions : (N, 3) array
        nm.
    size : float
        Width in inches.
    dpi : int

    Returns
    -------
    bytes
        A PNG file with transparent background.
    """
    from matplotlib.figure import Figure

    symbols = [atom.element.symbol if atom.element is not None else "" for atom in molecule.topology.atoms()]
    bonds = [(bond[0].index, bond[1].index) for bond in molecule.topology.bonds()]
    centred = np.asarray(positions, dtype=float) - np.mean(positions, axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    if np.linalg.det(axes) < 0:  # a mirror image would show the wrong chirality
        axes[2] *= -1
    x, y, depth = (centred @ axes.T).T
    margin = 0.06
    width, height = np.ptp(x) + 2 * margin, np.ptp(y) + 2 * margin
    figure = Figure(figsize=(size, size * max(0.35, height / width)))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set(xlim=(x.min() - margin, x.max() + margin), ylim=(y.min() - margin, y.max() + margin), aspect="equal")
    ax.axis("off")
    points_per_nm = 72.0 * size / width
    width_points = 0.018 * points_per_nm
    for pair in bonds:
        # Two halves, each just behind its own atom, or a bond would run across the atom behind it.
        for k, partner in (pair, pair[::-1]):
            ends = [[p[k], 0.5 * (p[k] + p[partner])] for p in (x, y)]
            ax.plot(*ends, color="#9a9a9a", linewidth=width_points, zorder=9.999 + depth[k])
    for k, symbol in enumerate(symbols):
        area = (2.0 * ELEMENT_RADII.get(symbol, OTHER_RADIUS) * points_per_nm) ** 2
        face = ELEMENT_COLOURS.get(symbol, OTHER_COLOUR)
        ax.scatter(x[k], y[k], s=area, color=face, edgecolor="#333333", linewidth=0.7, zorder=10.0 + depth[k])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True)
    return buffer.getvalue()


def _superposed(ensemble: Ensemble, molecule: Molecule, chosen: NDArray[np.intp]) -> Any:
    frames = ensemble[chosen].trajectory
    heavy = molecule.heavy_atoms
    # Three atoms fix an orientation; with fewer all atoms have to help.
    return frames.superpose(frames, 0, atom_indices=heavy if len(heavy) > 2 else None)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a front end that can show widgets."""
    if "ipykernel" not in sys.modules or "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _quiet_nglview() -> Any:
    """The nglview module, or None; what its import prints or warns about goes to the log."""
    noise = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
            warnings.simplefilter("ignore")
            import nglview
    except Exception as error:  # a broken widget stack raises whatever it likes, and a picture is left
        logger.warning("nglview could not be imported (%s): showing a picture instead", error)
        return None
    if noise.getvalue():
        logger.debug("nglview said while importing: %s", noise.getvalue().strip())
    return nglview
