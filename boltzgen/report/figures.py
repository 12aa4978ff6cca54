"""Figures of the report, each drawn off screen; what cannot be drawn is said in its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from boltzgen import plotting
from boltzgen.collective_variables import parse_basin
from boltzgen.ensemble import Ensemble
from boltzgen.errors import SelectionError
from boltzgen.report.html import figure, note, picture
from boltzgen.viewing import choose_frames, structure_png

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule
    from boltzgen.training import History

__all__ = ["conformations", "energies", "structure", "training", "weights"]

# A report is short: more residues or torsions than these are counted, not drawn.
MAX_MAPS, MAX_MARGINALS, MAX_PROFILES = 4, 6, 2


def conformations(ensemble: Ensemble, reference: Ensemble | ArrayLike | None, result: Mapping[str, Any]) -> str:
    """Ramachandran maps as generated, reweighted and of the reference; marginals where there is no phi and psi."""
    molecule = ensemble.molecule
    if molecule is None:
        return note("The samples belong to no molecule: there are no torsions to show.")
    frames = reference if isinstance(reference, Ensemble) else None
    of_basins = _basin_torsions(molecule, result)
    maps = backbone_pairs(molecule.torsions)
    if not maps:
        return _marginals(ensemble, frames, list(dict.fromkeys([*of_basins, *molecule.torsions])))
    # A bare histogram is one map and says nothing about other residues.
    pictures = "".join(
        _map_row(ensemble, reference if frames is not None or i == 0 else None, *pair)
        for i, pair in enumerate(maps[:MAX_MAPS])
    )
    for name in of_basins[:MAX_PROFILES]:
        caption = f"Free energy along {name}, with the 95 % bootstrap interval of the generated samples."
        pictures += _drawn(_profile(ensemble, name, frames), caption, "full", (8.4, 2.9))
    more = len(maps) - MAX_MAPS
    return _row(pictures) + (note(f"{more} more residues are not shown.") if more > 0 else "")


def _marginals(ensemble: Ensemble, reference: Ensemble | None, names: list[str]) -> str:
    if not names:
        return note("No torsion of this molecule has a name: none is shown.")
    pictures = "".join(
        _drawn(_marginal(ensemble, name, reference), f"Distribution of the torsion {name}.")
        for name in names[:MAX_MARGINALS]
    )
    more = len(names) - MAX_MARGINALS
    text = "No residue has both phi and psi: torsions are shown one by one."
    return note(text + (f" {more} more are not shown." if more > 0 else "")) + _row(pictures)


def energies(ensemble: Ensemble, reference: Ensemble | None) -> str:
    """Energy histogram, and energy against the density of the generator."""
    pictures = _drawn(
        lambda f: plotting.energy_histogram(ensemble, reference, f.subplots()),
        "Potential energy; shares beyond the axis and infinite energies are counted in the legend.",
    )
    pictures += _drawn(
        lambda f: plotting.energy_correlation(ensemble, f.subplots()),
        "Energy against minus the log-density of the generator, as generated.",
    )
    return _row(pictures)


def weights(ensemble: Ensemble) -> str:
    """Weights by rank."""
    caption = "Importance weights from the largest down, in units of their mean."
    return _row(_drawn(lambda f: plotting.weights(ensemble, f.subplots()), caption, "full", (8.4, 2.9)))


def training(history: History | None, result: Mapping[str, Any], temperature_unit: str) -> str:
    """Training curves and the populations of the basins through the training."""
    if history is None or not history.records:
        return note("There is no training record.")
    known = {
        name: estimate.get("probability") for name, estimate in (result.get("reference") or {}).items() if estimate
    }
    pictures = _drawn(
        lambda f: plotting.training_curve(history, f.subplots(3, 1, sharex=True), temperature_unit=temperature_unit),
        "Loss, effective sample size and temperature. Losses of different stages are different functions.",
        size=(4.8, 4.3),
    )
    pictures += _drawn(
        lambda f: plotting.populations(history, f.subplots(), reference=known),
        "Reweighted populations of the basins; dashed: reference.",
        size=(4.8, 4.3),
    )
    remarks = ["The training was interrupted before its end."] if history.interrupted else []
    remarks += [f"{event.kind.capitalize()}, {event}" for event in history.events]
    return "".join(note(remark) for remark in remarks) + _row(pictures)


def structure(ensemble: Ensemble) -> str:
    """The molecule in one configuration drawn by weight."""
    if ensemble.molecule is None:
        return note("The samples belong to no molecule: there is no picture of it.")
    try:
        frame = choose_frames(ensemble, 1)[0]
        png = structure_png(ensemble.molecule, ensemble.positions[frame])
    except ValueError as error:
        return note(f"No picture of the molecule: {error}.")
    return picture(png, "A generated configuration, drawn by weight.", "small")


def backbone_pairs(torsions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of phi and psi of each residue that has both, each residue once, in the order of the molecule."""
    found: dict[tuple[int, ...], tuple[str, str]] = {}
    for name in torsions:
        partner = "psi" + name.removeprefix("phi")
        if re.fullmatch(r"phi(\W.*)?", name) and partner in torsions:
            found.setdefault(tuple(torsions[name]), (name, partner))
    return list(found.values())


def _basin_torsions(molecule: Molecule, result: Mapping[str, Any]) -> list[str]:
    """Torsions in which the basins are written, each once."""
    found = {}
    for basin in (result.get("free_energies") or {}).values():
        with suppress(SelectionError):  # an expression of another program's result is no reason to have no report
            variables = parse_basin(str(basin.get("expression", "")), molecule).variables
            found.update({v.atoms: v.name for v in variables if v.is_periodic})
    return list(found.values())


def _map_row(ensemble: Ensemble, reference: Ensemble | ArrayLike | None, phi: str, psi: str) -> str:
    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if reference is None else 3, sharey=True, squeeze=False)[0]
        plotting.ramachandran(ensemble, phi, psi, ax=panels[0], weighted=False, colour_bar=False)
        plotting.ramachandran(ensemble, phi, psi, ax=panels[1], colour_bar=False)
        titles = ["as generated", "reweighted", "reference"]
        if reference is not None:
            if isinstance(reference, Ensemble):
                plotting.ramachandran(reference, phi, psi, ax=panels[2], colour_bar=False)
            else:
                plotting.free_energy_map(reference, panels[2], colour_bar=False)
                panels[2].set_xlabel(f"{phi} / degrees")
        for panel, title in zip(panels, titles, strict=False):
            panel.set_title(title, fontsize="medium", pad=16)
        for panel in panels[1:]:
            panel.set_ylabel("")
        figure.colorbar(panels[0].collections[0], ax=list(panels), label="free energy / kT", extend="max", shrink=0.9)

    caption = f"Free energy over {phi} and {psi}; cells above the scale are grey, those never visited white."
    return _drawn(draw, caption, "full", (8.8 if reference is not None else 6.4, 3.0))


def _marginal(ensemble: Ensemble, name: str, reference: Ensemble | None) -> Callable[[Figure], Any]:
    return lambda figure: plotting.torsion_marginal(ensemble, name, reference, figure.subplots())


def _profile(ensemble: Ensemble, name: str, reference: Ensemble | None) -> Callable[[Figure], Any]:
    return lambda figure: plotting.free_energy_profile(ensemble, name, reference, figure.subplots())


def _drawn(draw: Callable[[Figure], Any], caption: str, style: str = "", size: tuple[float, float] = (4.8, 3.6)) -> str:
    """The figure that ``draw`` fills, in default style whatever the user's own; a note if it cannot be drawn."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        canvas = Figure(figsize=size, layout=ConstrainedLayoutEngine(compress=True, w_pad=0.08))
        try:
            draw(canvas)
        except ValueError as error:
            return note(f"Not drawn: {caption} ({error})")
        return figure(canvas, caption, style)


def _row(pictures: str) -> str:
    return f'<div class="figures">\n{pictures}</div>\n'
