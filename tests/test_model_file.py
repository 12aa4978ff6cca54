"""Saved generators: everything comes back to the last bit, and damaged or foreign files are refused."""

import openmm
import pytest
import torch
from safetensors.torch import save_file

from boltzgen.coordinates import chart as chart_module
from boltzgen.errors import CheckpointError
from boltzgen.generator import BoltzmannGenerator


@pytest.fixture
def saved(dipeptide, potential, tmp_path):
    """A generator that is off its starting point, and its file."""
    generator = BoltzmannGenerator.for_molecule(dipeptide, potential, seed=5)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=random))
    generator.sample_and_log_prob(10)
    path = tmp_path / "model.safetensors"
    generator.save(path)
    return generator, path


def test_round_trip_is_exact(saved, monkeypatch):
    generator, path = saved

    def never(*_):
        raise AssertionError("loading must not minimise")

    monkeypatch.setattr(chart_module, "minimized_positions", never)
    loaded = BoltzmannGenerator.load(path)
    x, log_q = generator.sample_and_log_prob(200)
    y, log_q_loaded = loaded.sample_and_log_prob(200)
    assert torch.equal(x, y)
    assert torch.equal(log_q, log_q_loaded)
    with torch.no_grad():
        assert torch.equal(generator.log_prob(x), loaded.log_prob(x))
    assert loaded.flow.chart.rows == generator.flow.chart.rows
    assert loaded.flow.config == generator.flow.config
    assert loaded.kT == generator.kT
    assert loaded.seed == generator.seed


def test_molecule_comes_back(saved):
    generator, path = saved
    ours, theirs = generator.molecule, BoltzmannGenerator.load(path).molecule
    assert theirs.system_hash == ours.system_hash
    assert theirs.report() == ours.report()
    assert theirs.provenance == ours.provenance
    assert theirs.torsions == ours.torsions
    assert [theirs.atom_label(i) for i in range(22)] == [ours.atom_label(i) for i in range(22)]
    assert (theirs.bonds == ours.bonds).all()
    assert (theirs.positions._value == ours.positions._value).all()
    assert theirs.temperature == ours.temperature


def test_loaded_energies_are_the_same(saved):
    generator, path = saved
    loaded = BoltzmannGenerator.load(path)
    x, _ = generator.sample_and_log_prob(50)
    assert torch.equal(generator.potential(x.double()), loaded.potential(x.double()))


def test_double_precision_and_other_potentials_come_back(dipeptide, tmp_path):
    from boltzgen.energy import OpenMMPotential

    potential = OpenMMPotential(dipeptide, platform="Reference")
    generator = BoltzmannGenerator.for_molecule(dipeptide, potential, dtype=torch.float64)
    generator.save(tmp_path / "model.safetensors")
    loaded = BoltzmannGenerator.load(tmp_path / "model.safetensors")
    assert loaded.potential.name == "openmm"
    x, log_q = loaded.sample_and_log_prob(20)
    assert x.dtype == log_q.dtype == torch.float64
    assert torch.equal(x, generator.sample_and_log_prob(20)[0])


def test_damage_is_noticed(saved, tmp_path):
    _, path = saved
    good = bytearray(path.read_bytes())
    for kind in ("empty", "text", "truncated", "flipped"):
        bad = bytearray(good)
        if kind == "flipped":
            bad[-100] ^= 1
        content = {"empty": b"", "text": b"<html>" * 100, "truncated": good[:-5000], "flipped": bad}[kind]
        damaged = tmp_path / f"{kind}.safetensors"
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match=kind):
            BoltzmannGenerator.load(damaged)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        BoltzmannGenerator.load(tmp_path / "missing.safetensors")
    save_file({"weights": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a model of boltzgen"):
        BoltzmannGenerator.load(tmp_path / "other.safetensors")
    metadata = {"format": "boltzgen generator", "format_version": "99", "boltzgen_version": "9.0"}
    save_file({"weights": torch.zeros(3)}, tmp_path / "newer.safetensors", metadata)
    with pytest.raises(CheckpointError, match="format version 99"):
        BoltzmannGenerator.load(tmp_path / "newer.safetensors")


def test_only_generators_of_molecules_can_be_saved(potential, tmp_path):
    generator = BoltzmannGenerator(torch.nn.Linear(2, 2), potential)
    with pytest.raises(CheckpointError, match="Linear"):
        generator.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_bond_types_survive(dipeptide, tmp_path):
    """Topologies from other readers carry bond types and orders."""
    from openmm import app

    from boltzgen.generator_description import _topology_from_json, _topology_to_json

    topology = app.Topology()
    residue = topology.addResidue("UNK", topology.addChain("B"), "17", "C")
    atoms = [topology.addAtom(name, app.Element.getBySymbol("C"), residue) for name in ("C1", "C2", "C3")]
    topology.addBond(atoms[0], atoms[1], app.Double, 2)
    topology.addBond(atoms[1], atoms[2])
    again = _topology_from_json(_topology_to_json(topology))
    assert [(b.type, b.order) for b in again.bonds()] == [(app.Double, 2), (None, None)]
    (found,) = again.residues()
    assert (found.name, found.id, found.insertionCode, found.chain.id) == ("UNK", "17", "C", "B")
    assert openmm.__version__
