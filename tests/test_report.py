"""The report is one file that shows the numbers of the result, whole or not at all."""

import base64
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from picture_samples import bare_molecule, history, record, sample

from boltzgen.ensemble import Ensemble
from boltzgen.errors import OutputError
from boltzgen.plotting import ramachandran_histogram
from boltzgen.report import write_report
from boltzgen.training import Event, History

VOID = {"meta", "img", "br", "hr", "link", "input", "source", "area", "base", "col", "embed", "track", "wbr"}


class Page(HTMLParser):
    """Collects text, numbers, pictures and references, and insists that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.numbers: list[float] = []
        self.pictures: list[dict] = []
        self.references: list[str] = []
        self.words = ""
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self.numbers.append(float(attributes["value"]))
        if tag == "img":
            self.pictures.append(attributes)
        self.references += [attributes[name] for name in ("src", "href", "data", "action") if attributes.get(name)]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def molecule():
    return bare_molecule()


@pytest.fixture(scope="module")
def ensemble(molecule):
    return sample(molecule)[0]


def estimate(molecule, value: float) -> dict:
    return {
        "expression": "0 < phi < 150",
        "probability": 1 / (1 + np.exp(value)),
        "delta_f_kT": value,
        "delta_f_kT_low": value - 0.1,
        "delta_f_kT_high": value + 0.1,
        "delta_f_kJ_per_mol": value * molecule.kT,
        "delta_f_kcal_per_mol": value * molecule.kT / 4.184,
    }


def make_result(molecule) -> dict:
    return {
        "n_samples": 400,
        "ess_fraction": 0.8125,
        "pareto_k": 0.3125,
        "log_z": -512.25,
        "log_z_low": -512.5,
        "log_z_high": -512.0,
        "energy_evaluations": 4712345,
        "force_evaluations": 678,
        "wall_seconds": 487.0,
        "verdict": "usable",
        "verdict_reason": "covered & <checked>",
        "max_weight": 0.0009765625,
        "openmm_recheck": {"n": 1000, "max_abs_difference_kJ_per_mol": 0.000244140625},
        "free_energies": {"C7ax": estimate(molecule, 4.75)},
        "reference": {"C7ax": {**estimate(molecule, 4.875), "source": "umbrella sampling <b>"}},
        "coverage": {"C7ax": 0.53125, "rest": 0.890625},
        "forward_ess": 0.859375,
    }


@pytest.fixture
def result(molecule) -> dict:
    return make_result(molecule)


@pytest.fixture(scope="module")
def full_report(tmp_path_factory, molecule, ensemble) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    parts = {"history": history(), "result": make_result(molecule), "manifest": {"a": 1}}
    assert write_report(path, molecule=molecule, ensemble=ensemble, **parts) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lone(ensemble) -> Ensemble:
    """Samples without molecule, quick to report on."""
    return Ensemble(ensemble.positions, ensemble.log_weights, 1.0, ensemble.energies, ensemble.log_q)


def page(tmp_path, **parts) -> Page:
    return Page(write_report(tmp_path / "report.html", **parts).read_text(encoding="utf-8"))


def leaves(value) -> list[float]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    return [float(value)] if isinstance(value, int | float) else []


def test_every_number_of_the_result_stands_in_the_report_in_full(full_report, molecule, result) -> None:
    shown = Page(full_report)
    missing = [value for value in leaves(result) if value != 1000 and value not in shown.numbers]
    assert not missing
    kcal = result["free_energies"]["C7ax"]["delta_f_kT_low"] * molecule.kT / 4.184
    assert np.isclose(shown.numbers, kcal, rtol=1e-12).any()
    assert np.isclose(shown.numbers, 4.75 - 4.875).any()
    for text in ("usable", "covered & <checked>", "umbrella sampling <b>", "0 < phi < 150", "4.75"):
        assert text in shown.words


def test_sections_come_answer_first(full_report) -> None:
    expected = ["Answer", "Set-up", "Conformations", "Energies", "Weights", "Training", "Manifest", "How it was made"]
    assert Page(full_report).headings == expected


def test_report_is_self_contained(full_report) -> None:
    shown = Page(full_report)
    assert shown.references
    assert all(reference.startswith("data:image/png;base64,") for reference in shown.references)
    assert "<script" not in full_report
    assert not re.search(r"url\(|@import", full_report)
    for picture in shown.pictures:
        assert base64.b64decode(picture["src"].partition(",")[2]).startswith(b"\x89PNG")
        assert picture["alt"]


@pytest.mark.parametrize("as_histogram", [False, True])
def test_reference_may_be_samples_or_a_histogram(
    tmp_path, full_report, ensemble, molecule, result, as_histogram
) -> None:
    reference, _, _ = sample(molecule, 300, seed=3)
    given = ramachandran_histogram(reference) if as_histogram else reference
    parts = {"molecule": molecule, "ensemble": ensemble, "history": history(), "result": result, "manifest": {}}
    with_it, without = page(tmp_path, **parts, reference=given), Page(full_report)
    assert len(with_it.pictures) == len(without.pictures) == 8
    assert "Not drawn" not in with_it.words
    # The map of the reference makes that picture larger.
    assert len(with_it.pictures[1]["src"]) > len(without.pictures[1]["src"])


def test_what_a_run_does_not_have_is_said(tmp_path, lone) -> None:
    bare = {"n_samples": 400, "ess_fraction": float("nan"), "pareto_k": float("inf"), "verdict": "do not use"}
    shown = page(tmp_path, molecule=None, ensemble=lone, history=None, result=bare, manifest={})
    for text in ("No basin", "no molecule", "no training record", "not a number", "∞", "not available"):
        assert text in shown.words


def test_without_phi_and_psi_the_named_torsions_are_drawn(tmp_path, ensemble, molecule, result) -> None:
    class OmegaOnly:
        @property
        def torsions(self):
            return {name: atoms for name, atoms in molecule.torsions.items() if name.startswith("omega")}

        def __getattr__(self, name):
            return getattr(molecule, name)

    result["free_energies"]["C7ax"]["expression"] = "distance(0, 5) < 0.4"
    stripped = OmegaOnly()
    samples = Ensemble(ensemble.positions, ensemble.log_weights, ensemble.kT, ensemble.energies, None, stripped)
    shown = page(tmp_path, molecule=stripped, ensemble=samples, history=None, result=result, manifest={})
    assert sum("omega" in picture["alt"] for picture in shown.pictures) == 2
    assert "one by one" in shown.words


@pytest.mark.parametrize("n", [0, 1])
def test_interrupted_training_is_reported(tmp_path, ensemble, molecule, result, n) -> None:
    cut = History([record("hot", 100, C7ax=0.1)] * n, interrupted=True)
    shown = page(tmp_path, molecule=molecule, ensemble=ensemble, history=cut, result=result, manifest={})
    assert ("interrupted" in shown.words) == bool(n)
    assert ("no training record" in shown.words) != bool(n)


def test_events_of_the_training_are_reported(tmp_path, ensemble, molecule, result) -> None:
    seen = History([record("hot", 100, C7ax=0.1)], events=[Event(12, "alarm", "C7ax holds <1 % of the samples")])
    shown = page(tmp_path, molecule=molecule, ensemble=ensemble, history=seen, result=result, manifest={})
    assert "Alarm, step 12: C7ax holds <1 % of the samples" in shown.words


def test_hostile_text_stays_text(tmp_path, ensemble, molecule, result) -> None:
    evil = '"><script>alert(1)</script>'
    result["verdict"], result["free_energies"] = evil, {evil: result["free_energies"]["C7ax"]}
    result["coverage"] = {evil: 0.5}
    short = History([record(evil, 100, **{evil: 0.1})])
    path = tmp_path / "r.html"
    write_report(
        path, molecule=molecule, ensemble=ensemble, history=short, result=result, manifest={evil: {evil: evil}}
    )
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert f"{evil}.{evil}" in Page(text).words


def test_samples_without_any_weight_still_give_a_report(tmp_path, ensemble, molecule, result) -> None:
    dead = Ensemble(ensemble.positions, np.full(400, -np.inf), molecule.kT, ensemble.energies, ensemble.log_q, molecule)
    shown = page(tmp_path, molecule=molecule, ensemble=dead, history=history(), result=result, manifest={})
    assert "Not drawn" in shown.words
    assert "No picture of the molecule" in shown.words


def test_a_failure_leaves_the_old_report_and_nothing_else(tmp_path, lone, result, monkeypatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    parts = {"molecule": None, "ensemble": lone, "history": None, "result": result, "manifest": {}}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OutputError, match="the disk is full"):
            write_report(path, **parts)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError):
        write_report(tmp_path / "nowhere" / "report.html", **parts)
    write_report(path, **parts)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_users_own_plot_style_is_neither_used_nor_changed(tmp_path, lone, result) -> None:
    import matplotlib

    parts = {"molecule": None, "ensemble": lone, "history": None, "result": result, "manifest": {}}
    plain = page(tmp_path, **parts).pictures
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30}):
        assert page(tmp_path, **parts).pictures == plain
        assert matplotlib.rcParams["font.size"] == 30
