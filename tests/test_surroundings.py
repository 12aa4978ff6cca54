"""Sums over the surroundings of heavy atoms, against loops over atoms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_molecules import harmonic_molecule, small_molecule
from test_local_hydrogens import SMALL, bonds_from, roughened

from boltzgen import generator_description
from boltzgen.coordinates.internal import local_vectors, place_atoms
from boltzgen.energy import CompiledPotential
from boltzgen.flows.surroundings import UNIT_NM, WIDTHS_NM
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

SYSTEMS = Path(__file__).resolve().parent.parent / "systems"


WITH = replace(SMALL, surroundings=16)


def generator_of(path, config=WITH):
    molecule = Molecule.from_pdb(path)
    potential = CompiledPotential(molecule, compile=False)
    return roughened(BoltzmannGenerator.for_molecule(molecule, potential, config=config, dtype=torch.float64))


@pytest.fixture(scope="module")
def dipeptide():
    return generator_of(SYSTEMS / "alanine_dipeptide.pdb")


def looped(molecule, x, atom, along, other):
    """Features of one atom of one configuration, by the formula of the docstring."""
    bonds = bonds_from(molecule, atom)
    heavy = [j for j in range(molecule.n_atoms) if molecule.elements[j] != "H"]
    unit = lambda v: v / np.linalg.norm(v)
    first = unit(x[along] - x[atom])
    normal = unit(np.cross(first, x[other] - x[atom]))
    axes = np.stack([first, np.cross(normal, first), normal])
    sums = np.zeros((len(WIDTHS_NM), 2, 4))
    for j in heavy:
        if bonds[j] <= 3:
            continue
        kind = 0 if sum(j in pair for pair in molecule.bonds.tolist()) == 1 else 1
        for k, width in enumerate(WIDTHS_NM):
            near = np.exp(-np.sum((x[j] - x[atom]) ** 2) / (2 * width**2))
            sums[k, kind] += near * np.concatenate([[1.0], axes @ (x[j] - x[atom]) / UNIT_NM])
    return sums.ravel()


def test_sums_are_those_of_a_loop(dipeptide):
    flow, molecule = dipeptide.flow, dipeptide.molecule
    with torch.no_grad():
        coordinates, _ = flow.sample_internal(3, torch.Generator().manual_seed(0))
        positions = flow.internal.to_cartesian(coordinates)[0].numpy()
        found = flow.surroundings(coordinates).numpy()
    zmatrix = flow.internal.zmatrix
    root = zmatrix.atoms[:3].tolist()
    seen = 0
    for atom, rows in flow.surroundings.rows().items():
        place = zmatrix.atoms.tolist().index(atom)
        frames = [(root[1], root[2]), (root[0], root[2]), (root[1], root[0])]
        along, other = frames[place] if place < 3 else zmatrix.references[place, :2]
        for n in range(3):
            expected = looped(molecule, positions[n], atom, along, other)
            np.testing.assert_allclose(found[rows, n], expected, atol=1e-12)
            seen += bool(np.abs(expected).max() > 0.1)
    assert seen >= 15  # of 30: most atoms have something beyond three bonds


def test_hydrogens_do_not_matter(dipeptide):
    flow = dipeptide.flow
    coordinates, _ = flow.sample_internal(2, torch.Generator().manual_seed(1))
    changed = coordinates.clone()
    changed[:, [i for free in (True, False) for i in flow.chart.indices(free, True)]] += 0.1
    torch.testing.assert_close(flow.surroundings(changed), flow.surroundings(coordinates), rtol=0, atol=0)


def test_the_density_is_that_of_the_samples_and_depends_on_the_surroundings(dipeptide):
    flow = dipeptide.flow
    with torch.no_grad():
        x, log_q = flow.sample_and_log_prob(64, torch.Generator().manual_seed(2))
        torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-8)
        kept = flow.surroundings._is_far.clone()
        flow.surroundings._is_far.zero_()
        blind = flow.log_prob(x)
        flow.surroundings._is_far.copy_(kept)
    assert float((blind - log_q).abs().max()) > 1e-3


def test_small_molecules_have_no_surroundings_and_say_so(caplog):
    molecule = small_molecule("methanol")
    potential = CompiledPotential(molecule, compile=False)
    assert BoltzmannGenerator.for_molecule(molecule, potential, config=WITH).flow.surroundings is None
    assert "surroundings=16 has no effect" in caplog.text
    caplog.clear()
    BoltzmannGenerator.for_molecule(molecule, potential, config=SMALL)
    assert "surroundings" not in caplog.text


def test_a_heavy_flow_with_placed_hydrogens_has_surroundings(dipeptide, caplog):
    options = {"config": WITH, "hydrogens": "network"}
    placed = BoltzmannGenerator.for_molecule(dipeptide.molecule, dipeptide.potential, **options)
    assert placed.flow.heavy.surroundings is not None
    assert "surroundings" not in caplog.text


def test_cartesian_coordinates_refuse_surroundings(dipeptide):
    with pytest.raises(ValueError, match="surroundings=16 belongs to coordinates='internal'"):
        BoltzmannGenerator.for_molecule(dipeptide.molecule, dipeptide.potential, coordinates="cartesian", config=WITH)


def test_models_from_before_are_read_as_they_were():
    before = generator_of(SYSTEMS / "alanine_dipeptide.pdb", SMALL)
    text, arrays = generator_description.describe(before)
    assert text.count('"surroundings": 0, ') == 1
    again = generator_description.rebuild(text.replace('"surroundings": 0, ', ""), arrays)
    assert again.flow.surroundings is None
    assert again.flow.state_dict().keys() == before.flow.state_dict().keys()


def nitrile_chain():
    """Six carbons and a nitrogen in line with the last two, no hydrogens."""
    chain = torch.tensor([[[0.0, 0.0, 0.0], [0.153, 0.0, 0.0], [0.204, 0.144, 0.0]]], dtype=torch.float64)
    for torsion in (3.05, 1.19, 3.0):
        local = local_vectors(*(torch.tensor([[x]], dtype=torch.float64) for x in (0.153, 1.95, torsion)))
        c, a, b = chain[:, -3:].split(1, dim=1)
        chain = torch.cat([chain, place_atoms(b, a, c, local)], dim=1)
    direction = torch.nn.functional.normalize(chain[:, -1:] - chain[:, -2:-1], dim=-1)
    positions = torch.cat([chain, chain[:, -1:] + 0.116 * direction], dim=1)[0].numpy()
    return harmonic_molecule(["C"] * 6 + ["N"], [(k, k + 1) for k in range(6)], positions)


def test_atoms_in_a_line_have_a_frame():
    """Parent and grandparent of a nitrile's nitrogen lie on a line with it: rounding would choose the frame."""
    molecule = nitrile_chain()
    potential = CompiledPotential(molecule, compile=False)
    flow = roughened(BoltzmannGenerator.for_molecule(molecule, potential, config=WITH)).flow
    assert flow.internal.zmatrix.is_linear.any()
    assert flow.surroundings is not None
    with torch.no_grad():
        x, log_q = flow.sample_and_log_prob(512, torch.Generator().manual_seed(0))
        assert x.dtype == torch.float32
        torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=2e-3)


@pytest.mark.parametrize("width", [-1, 1.5, "64"])
def test_widths_that_cannot_be_are_refused(width):
    with pytest.raises(ValueError, match="surroundings="):
        replace(SMALL, surroundings=width)
