"""One self-contained HTML page about a run: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from boltzgen import __version__
from boltzgen.ensemble import Ensemble
from boltzgen.output_files import write_bytes
from boltzgen.report.html import count, data, duration, interval, number, pairs, scientific, section, signed, table

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule
    from boltzgen.training import History

__all__ = ["write_report"]

GAS_CONSTANT = 8.31446261815324e-3  # kJ/mol/K
KJ_PER_KCAL = 4.184
WEIGHTS = """Each carries the importance weight exp(−U/kT)/q, with U the unmodified energy, so that weighted averages
are those of the Boltzmann distribution within the domain that the generator can reach."""
OTHER_WEIGHTS = """Each carries an importance weight whose target is {target}: q is the density of the heavy atoms, and
U the unmodified energy with the hydrogens where they were placed. This is not the Boltzmann distribution of the
molecule: the width of the hydrogens' distribution about their minimum is left out, which shifts the populations of
basins where that width differs (Felardos, Hénin and Charpiat, 2022, appendix E)."""
PENALTY = """ The generator draws all coordinates of the heavy atoms, in an orientation that an alignment penalty
keeps; the penalty is taken out of the weights that free energies use."""
METHOD = """<p>The samples are independent draws from a normalizing flow with exact density q. {weights} ΔF of a basin
is −kT ln[P/(1−P)], P its weighted population; intervals are 95 %.</p>
<p class="note">ESS: effective sample size (Kish), as a share of n. Pareto k: tail index of the weights; above 0.7 the
error estimates cannot be trusted (Vehtari et al., 2024). Coverage of a basin: mean over reference samples in it of
min(1, q/p), one only where the generator is nowhere too thin. Forward ESS: 1/E<sub>p</sub>[p/q] over reference samples.
Without reference samples nothing certifies that no mode is missing. log Z carries {unit}: compare it
between runs on the same atoms only. L2+, where it was used, is the masked log-variance loss of Felardos, Hénin and
Charpiat (2022).</p>"""


def write_report(
    path: str | Path,
    *,
    molecule: Molecule | None,
    ensemble: Ensemble,
    history: History | None,
    result: Mapping[str, Any],
    manifest: Mapping[str, Any],
    reference: Ensemble | ArrayLike | None = None,
) -> Path:
    """Write the report of a run as one HTML file without external resources.

    What a run does not have (basins, a reference, phi and psi, a training record) is said in its place.

    Parameters
    ----------
    path : path-like
        Replaced in one step when the page is complete; never left half-written.
    molecule : Molecule or None
    ensemble : Ensemble
        The generated samples.
    history : History or None
    result : mapping
        As in ``result.json``.
    manifest : mapping
        As in ``manifest.json``.
    reference : Ensemble or (72, 72) array, optional
        Samples of an independent method, or only their histogram over phi and psi.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from boltzgen.report import figures as draw

    frames = reference if isinstance(reference, Ensemble) else None
    heat = "K" if molecule is not None else "target temperature"
    sections = [
        section("Answer", _answer(molecule, ensemble, result)),
        section("Set-up", _setup(molecule, ensemble)),
        section("Conformations", draw.conformations(ensemble, reference, result)),
        section("Energies", draw.energies(ensemble, frames)),
        section("Weights", draw.weights(ensemble)),
        section("Training", draw.training(history, result, heat) + _stages(history, heat)),
        section("Manifest", _manifest(manifest)),
        section("How it was made", _method(manifest, ensemble)),
    ]
    return write_bytes(path, _document(_title(molecule), "".join(sections)).encode())


def _title(molecule: Molecule | None) -> str:
    if molecule is None:
        return "Boltzmann generator"
    residues = [residue.name for residue in molecule.topology.residues()]
    sequence = "–".join(residues if len(residues) <= 12 else residues[:11] + ["…"])
    return f"{sequence}, {molecule.topology.getNumAtoms()} atoms, {molecule.kT / GAS_CONSTANT:.4g} K"


def _document(title: str, body: str) -> str:
    css = resources.files("boltzgen.report").joinpath("report.css").read_text(encoding="utf-8")
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: boltzgen report</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="subtitle">Report of boltzgen {escape(__version__)}, '
        f"written {written}</p></header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


# --- Answer -----------------------------------------------------------------------------------------------------------


def _answer(molecule: Molecule | None, ensemble: Ensemble, result: Mapping[str, Any]) -> str:
    verdict = str(result.get("verdict", "no verdict"))
    words = verdict.lower()
    level = "good" if words.startswith("usable") else "bad" if words.startswith("do not") else "caution"
    banner = (
        f'<div class="verdict {level}"><strong>{escape(verdict)}</strong>'
        f"<p>{escape(str(result.get('verdict_reason', '')))}</p></div>\n"
    )
    if ensemble.target:
        banner += (
            f"<p><strong>Target: {escape(ensemble.target)}.</strong> It is not the Boltzmann distribution of the "
            "molecule: populations and free energies below are those of this target.</p>\n"
        )
    basins: Mapping[str, Any] = result.get("free_energies") or {}
    if not basins:
        return (
            banner
            + '<p class="note">No basin was named, so there is no free-energy difference.</p>'
            + _quality(ensemble, result)
        )
    references: Mapping[str, Any] = result.get("reference") or {}
    rows = []
    for name, estimate in basins.items():
        rows.append(("answer", _estimate_row(f"{name}, generated", estimate, molecule)))
        if references.get(name):
            rows.append(("", _estimate_row(f"{name}, reference", references[name], molecule)))
            rows.append(("", _difference_row(estimate, references[name], molecule)))
    head = ("Basin", "Population", "ΔF / kT", "ΔF / (kJ/mol)", "ΔF / (kcal/mol)")
    return banner + table(head, rows) + _footnotes(basins, references) + _quality(ensemble, result)


def _estimate_row(label: str, estimate: Mapping[str, Any], molecule: Molecule | None) -> list[str]:
    bounds = estimate.get("delta_f_kT_low"), estimate.get("delta_f_kT_high")
    kT = _kt(estimate, molecule)
    cells = [escape(label), data(estimate.get("probability"), scientific)]
    units = (("delta_f_kT", 1.0), ("delta_f_kJ_per_mol", kT), ("delta_f_kcal_per_mol", kT and kT / KJ_PER_KCAL))
    for key, factor in units:
        scaled = [None if b is None or factor is None else b * factor for b in bounds]
        cells.append(f"{data(estimate.get(key))} {interval(*scaled)}")
    return cells


def _difference_row(generated: Mapping[str, Any], other: Mapping[str, Any], molecule: Molecule | None) -> list[str]:
    cells = ["difference", ""]
    for key in ("delta_f_kT", "delta_f_kJ_per_mol", "delta_f_kcal_per_mol"):
        ours, theirs = generated.get(key), other.get(key)
        cells.append(data(None if ours is None or theirs is None else ours - theirs, signed))
    return cells


def _kt(estimate: Mapping[str, Any], molecule: Molecule | None) -> float | None:
    """kT in kJ/mol, of the molecule or else of the two units in which the estimate stands."""
    if molecule is not None:
        return float(molecule.kT)
    in_kT, in_kJ = estimate.get("delta_f_kT"), estimate.get("delta_f_kJ_per_mol")
    return float(in_kJ) / float(in_kT) if in_kT and in_kJ is not None else None


def _footnotes(basins: Mapping[str, Any], references: Mapping[str, Any]) -> str:
    lines = [
        f"{name}: <code>{escape(str(e['expression']))}</code>" for name, e in _escaped(basins) if e.get("expression")
    ]
    lines += [
        f"reference of {name}: {escape(str(e['source']))}" for name, e in _escaped(references) if e and e.get("source")
    ]
    if not references:
        lines.append("no reference was run or given")
    return f'<p class="note">ΔF = −kT ln[P/(1−P)], 95 % intervals in brackets; {"; ".join(lines)}.</p>\n'


def _escaped(estimates: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(escape(str(name)), estimate) for name, estimate in estimates.items()]


def _quality(ensemble: Ensemble, result: Mapping[str, Any]) -> str:
    recheck = result.get("openmm_recheck") or {}
    rows = [
        ("samples", data(result.get("n_samples"), count)),
        ("effective sample size / n", data(result.get("ess_fraction"), lambda v: f"{v:.3f}")),
        ("Pareto k of the weights", data(result.get("pareto_k"))),
        ("largest share of one sample", data(result.get("max_weight"), scientific)),
        ("log Z", f"{data(result.get('log_z'))} {interval(result.get('log_z_low'), result.get('log_z_high'))}"),
        ("energy evaluations", data(result.get("energy_evaluations"), count)),
        ("force evaluations", data(result.get("force_evaluations"), count)),
        ("wall time", data(result.get("wall_seconds"), duration)),
    ]
    if recheck:
        difference = data(recheck.get("max_abs_difference_kJ_per_mol"), scientific)
        rows.append((f"largest difference to OpenMM, {recheck.get('n')} samples", f"{difference} kJ/mol"))
    if result.get("placement"):
        rows.append(
            ("hydrogens above their minimum, mean", f"{data(result['placement']['mean_excess'], scientific)} kT")
        )
    for basin, value in (result.get("coverage") or {}).items():
        rows.append((f"coverage of {basin}", data(value, lambda v: f"{v:.3f}")))
    if result.get("forward_ess") is not None:
        rows.append(("forward ESS", data(result["forward_ess"], lambda v: f"{v:.3f}")))
    for name, lost in (("lost evaluations", ensemble.n_lost), ("undefined energies or densities", ensemble.n_defects)):
        if lost:
            rows.append((name, count(lost)))
    return pairs(rows)


# --- The other sections -----------------------------------------------------------------------------------------------


def _setup(molecule: Molecule | None, ensemble: Ensemble) -> str:
    if molecule is None:
        return '<p class="note">The target is a bare energy function: there is no molecule.</p>'
    from boltzgen.report.figures import structure

    return f'<div class="figures"><pre>{escape(molecule.report())}</pre>{structure(ensemble)}</div>'


def _stages(history: History | None, temperature_unit: str) -> str:
    if history is None or not history.records:
        return ""
    rows, before = [], 0
    for stage, group in groupby(history.records, key=lambda record: record["stage"]):
        part = list(group)
        used = part[-1]["energy_evaluations"] - before
        before = part[-1]["energy_evaluations"]
        temperatures = f"{part[0]['temperature']:.4g} to {part[-1]['temperature']:.4g}"
        cells = [escape(str(stage)), count(used), temperatures]
        cells += [data(part[-1].get("loss"), number), data(part[-1].get("ess_fraction"), number)]
        rows.append(("", cells))
    return table(
        ("Stage", "Energy evaluations", f"Temperature / {temperature_unit}", "Last loss", "Last ESS / n"), rows
    )


def _manifest(manifest: Mapping[str, Any]) -> str:
    rows = [("", [escape(key), escape(value)]) for key, value in _flat(manifest)]
    if not rows:
        return '<p class="note">The manifest is empty.</p>'
    summary = "Versions, hashes, platform, precision, seeds"
    return f"<details><summary>{summary}</summary>{table(('Key', 'Value'), rows)}</details>\n"


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, str(value))]
    return rows


def _method(manifest: Mapping[str, Any], ensemble: Ensemble) -> str:
    command = manifest.get("command")
    if isinstance(command, list | tuple):
        command = " ".join(str(word) for word in command)
    line = f"<p>Command: <code>{escape(str(command))}</code></p>\n" if command else ""
    weights = OTHER_WEIGHTS.format(target=escape(ensemble.target)) if ensemble.target else WEIGHTS
    weights += PENALTY if ensemble.log_rigid_integral is not None else ""
    dimension = ensemble.unbiased().dimension
    unit = "a unit that is not known" if dimension is None else f"nm to the power {dimension}"
    return line + METHOD.format(weights=weights, unit=unit)
