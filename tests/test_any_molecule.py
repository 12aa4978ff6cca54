"""Generators out of the box for molecules of every kind, and clear errors for what is none."""

import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from small_molecules import DATA, harmonic_molecule, small_molecule

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.internal import InternalCoordinates
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.energy import CompiledPotential, OpenMMPotential
from boltzgen.errors import ForceFieldError, StructureError
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.sampling.domain import domain_of

SMALL = sorted(path.stem for path in (DATA / "cgenff").glob("*.pdb"))
AMINO_ACIDS = sorted(path.stem for path in (DATA / "capped").glob("*.pdb"))
ENERGY_LIMIT = 1e4  # kJ/mol
FREE = {"butane": 3, "hexane": 5, "toluene": 1, "methanol": 1, "butyne": 1}
# side chains: free torsions by name, and how many besides (methyls, NH3, OH, SH)
CHI = {
    "ALA": (0, 1), "GLY": (0, 0), "PRO": (0, 0), "SER": (1, 1), "THR": (1, 2), "CYS": (1, 1), "VAL": (1, 2),
    "LEU": (2, 2), "ILE": (2, 2), "PHE": (2, 0), "TYR": (2, 1), "TRP": (2, 0), "HIS": (2, 0), "ASP": (2, 0),
    "ASN": (2, 0), "GLU": (3, 0), "GLN": (3, 0), "MET": (3, 1), "LYS": (4, 1), "ARG": (4, 0),
}  # fmt: skip


def peptide(name):
    """Amber, which loads faster than CHARMM36m; benchmarks/molecules.py has the same checks for the latter."""
    return Molecule.from_pdb(DATA / f"{name}.pdb", forcefield="amber14")


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    """A small molecule and its untrained generator in float64."""
    molecule = small_molecule(request.param)
    return request.param, BoltzmannGenerator.for_molecule(molecule, OpenMMPotential(molecule), dtype=torch.float64)


@pytest.fixture(scope="module", params=["PRO", "TRP"])
def ringed(request):
    molecule = peptide(f"capped/{request.param}")
    return BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False), dtype=torch.float64)


def low_energies(generator, n=100):
    """Share of configurations below the limit, torsions as in the structure and stiff coordinates drawn."""
    coordinates, _ = generator.flow.sample_internal(n, generator.rng)
    for i, row in enumerate(generator.coordinates.rows):
        if row.kind == "free torsion":
            coordinates[:, i] = row.centre
    with torch.no_grad():
        energies = generator.potential(generator.flow.internal.to_cartesian(coordinates)[0])
    return float((energies < ENERGY_LIMIT).double().mean())


def log_det_error(internal, x):
    """Error of the log-determinant of one structure (N, 3) against autograd; see the test of the dipeptide."""
    values, log_det = internal.to_internal(x[None])

    def place(variables):
        placed, _ = internal.to_cartesian(variables[None, :-6])
        a, b, c = variables[-6:-3]
        zero = torch.zeros_like(a)
        turn = torch.matrix_exp(torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).reshape(3, 3))
        return (placed[0] @ turn.T + variables[-3:]).flatten()

    # at no rotation the rotation vector has unit density in Haar measure
    jacobian = torch.autograd.functional.jacobian(place, torch.cat([values[0], torch.zeros(6, dtype=values.dtype)]))
    return abs(float(torch.linalg.slogdet(jacobian).logabsdet + log_det[0]))


def check(generator):
    """What holds for every molecule."""
    internal = generator.flow.internal
    positions, log_q = generator.sample_and_log_prob(100)
    assert bool(torch.isfinite(positions).all())
    with torch.no_grad():
        torch.testing.assert_close(generator.log_prob(positions), log_q, rtol=0, atol=1e-8)
    assert domain_of(generator.molecule)(positions.numpy()).all()
    single = positions.float()
    back, _ = internal.to_cartesian(internal.to_internal(single)[0])
    for a, b in zip(single[:50], back[:50], strict=True):
        torch.testing.assert_close(torch.pdist(a), torch.pdist(b), rtol=0, atol=1e-5)  # nm, the target of the issue
    assert log_det_error(internal, positions[0]) < 1e-7
    assert low_energies(generator) >= 0.99


def test_small_molecules(small):
    name, generator = small
    check(generator)
    rows = generator.coordinates.rows
    assert sum(row.kind == "free torsion" for row in rows) == FREE.get(name, 0)
    assert len(rows) == 3 * generator.molecule.n_atoms - 6


def test_rings_of_amino_acids(ringed):
    check(ringed)


def test_a_ring_may_flip():
    """The mirror image of cyclopentane with the hydrogens of each carbon exchanged is its other pucker: same labels."""
    molecule = small_molecule("cyclopentane")
    generator = BoltzmannGenerator.for_molecule(molecule, OpenMMPotential(molecule), dtype=torch.float64)
    order = [
        molecule.atom_names.index(name[:2] + {"1": "2", "2": "1"}[name[2]] if name[0] == "H" else name)
        for name in molecule.atom_names
    ]
    positions = molecule.positions.value_in_unit(unit.nanometer)
    flipped = (positions * np.array([1.0, 1.0, -1.0]))[order]
    assert domain_of(molecule)(flipped[None]).all()
    assert generator.contains(np.stack([positions, flipped])).all()
    assert not generator.contains((positions * np.array([1.0, 1.0, -1.0]))[None]).any()


@pytest.mark.parametrize("name", ["ace_cys_gly_gly_cys_nme", "ace_cys_cys_nme"])
def test_macrocycle_through_a_disulfide(name):
    molecule = peptide(name)
    generator = BoltzmannGenerator.for_molecule(
        molecule, CompiledPotential(molecule, compile=False), dtype=torch.float64
    )
    check(generator)
    assert "stiff torsions within 90 degrees" in generator.coordinates.domain()


@pytest.mark.parametrize("name", AMINO_ACIDS)
def test_torsions_of_each_amino_acid(name):
    """phi, psi and every chi are coordinates; free ones but for rings, amides and guanidinium."""
    molecule = peptide(f"capped/{name}")
    chart = CoordinateChart.for_molecule(molecule, _Flat(molecule.n_atoms))
    kinds = {row.name: row.kind for row in chart.rows}
    # the ring of proline is closed between CB and CD, so its chi are not coordinates
    assert {torsion for torsion in molecule.torsions if name != "PRO" or "chi" not in torsion} <= set(kinds)
    free = {row for row, kind in kinds.items() if kind == "free torsion"}
    backbone = {"psi"} if name == "PRO" else {"phi", "psi"}
    n_chi, n_others = CHI[name]
    assert free & set(molecule.torsions) == backbone | {f"chi{k}" for k in range(1, n_chi + 1)}
    assert len(free) == len(backbone) + n_chi + n_others + 2  # the methyls of the caps
    assert kinds["omega[1]"] == kinds["omega[2]"] == "stiff torsion"


class _Flat:
    """A potential for charts whose widths do not matter."""

    def __init__(self, n_atoms):
        self.n_atoms = n_atoms

    def __call__(self, positions):
        return positions.square().sum((1, 2))


def test_proline_keeps_its_side_of_the_amide_or_gives_it_up():
    molecule = peptide("capped/PRO")
    trans, free = (CoordinateChart.for_molecule(molecule, _Flat(26), omega=omega) for omega in ("trans", "free"))
    omega = next(row for row in trans.rows if row.name == "omega[1]")
    assert (omega.kind, abs(omega.centre), omega.limit) == ("stiff torsion", math.pi, math.pi / 2)
    assert "omega[1]" in trans.domain()
    assert next(row for row in free.rows if row.name == "omega[1]").kind == "free torsion"
    assert "omega[1]" not in free.domain()


def test_table_lists_every_coordinate(small):
    _, generator = small
    head, *lines = generator.coordinates.table().splitlines()
    assert head.split() == ["kind", "name", "atoms", "centre", "width", "reach"]
    assert len(lines) == 3 * generator.molecule.n_atoms - 6
    for line, row in zip(lines, generator.coordinates.rows, strict=True):
        assert line.startswith(row.kind)
        assert row.label in line
        assert all(generator.molecule.atom_label(atom) in row.label for atom in row.atoms)


TETRAHEDRON = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / math.sqrt(3)
SPECIAL = {
    "methane": ("CHHHH", [(0, 0, 0), *(0.109 * TETRAHEDRON)], [(0, 1), (0, 2), (0, 3), (0, 4)]),
    "hydrogen peroxide": (
        "HOOH",
        [(0.09, 0, -0.03), (0, 0, 0), (0, 0, 0.145), (-0.03, 0.085, 0.175)],
        [(0, 1), (1, 2), (2, 3)],
    ),
    "formaldehyde": ("COHH", [(0, 0, 0), (0.12, 0, 0), (-0.06, 0.09, 0), (-0.06, -0.09, 0)], [(0, 1), (0, 2), (0, 3)]),
    "square planar": (
        "CFFFF",
        [(0, 0, 0), (0.14, 0, 0), (0, 0.14, 0), (-0.14, 0, 0), (0, -0.14, 0)],
        [(0, 1), (0, 2), (0, 3), (0, 4)],
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_cases_that_work(name):
    """One or two heavy atoms, no torsion at all, straight angles at a centre of four."""
    elements, positions, bonds = SPECIAL[name]
    internal = InternalCoordinates(ZMatrix.from_bonds(np.array(bonds), list(elements), positions=np.array(positions)))
    rng = torch.Generator().manual_seed(0)
    frames = torch.tensor(np.array(positions)) + 0.005 * torch.randn(
        20, len(elements), 3, generator=rng, dtype=torch.float64
    )
    coordinates, log_det = internal.to_internal(frames)
    back, log_det_back = internal.to_cartesian(coordinates)
    torch.testing.assert_close(log_det + log_det_back, torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)
    for a, b in zip(frames, back, strict=True):
        torch.testing.assert_close(torch.pdist(a), torch.pdist(b), rtol=0, atol=1e-9)
    assert log_det_error(internal, frames[0]) < 1e-7
    # no angle that a dihedral refers to can become straight by thermal motion
    angles = internal.split(coordinates)[1]
    assert float(angles.sin().min()) > 0.3


def test_a_molecule_without_free_torsions_or_heavy_neighbours_is_generated():
    elements, positions, bonds = SPECIAL["methane"]
    molecule = harmonic_molecule(list(elements), bonds, np.array(positions))
    generator = BoltzmannGenerator.for_molecule(
        molecule, CompiledPotential(molecule, compile=False), dtype=torch.float64
    )
    check(generator)


def test_fewer_than_four_atoms():
    water = harmonic_molecule(["O", "H", "H"], [(0, 1), (0, 2)], np.array([(0, 0, 0), (0.1, 0, 0), (-0.03, 0.09, 0)]))
    with pytest.raises(StructureError, match="a molecule of 3 atoms has no internal coordinates"):
        BoltzmannGenerator.for_molecule(water, CompiledPotential(water, compile=False))


def test_a_linear_molecule():
    line = np.array([(0, 0, z) for z in (0, 0.106, 0.226, 0.332)])
    acetylene = harmonic_molecule(["H", "C", "C", "H"], [(0, 1), (1, 2), (2, 3)], line)
    with pytest.raises(StructureError, match="the molecule is linear"):
        BoltzmannGenerator.for_molecule(acetylene, OpenMMPotential(acetylene))


def test_a_line_that_is_too_long_to_have_a_direction():
    """A triyne: its far end sees nothing off the line within ten degrees."""
    heavy = [(0, 0, 0.13 * k) for k in range(8)]
    positions = np.array([*heavy, (0.1, 0, -0.04)])
    bonds = [*((k, k + 1) for k in range(7)), (0, 8)]
    with pytest.raises(StructureError, match="lie on a line with every atom"):
        ZMatrix.from_bonds(
            np.array(bonds + [(7, 9)]), ["C"] * 8 + ["H", "H"], positions=np.array([*positions, (0.1, 0, 0.95)])
        )


def test_several_components():
    topology = app.Topology()
    residue = topology.addResidue("TWO", topology.addChain("A"))
    for i in range(4):
        topology.addAtom(f"C{i}", app.element.carbon, residue)
    system = openmm.System()
    for _ in range(4):
        system.addParticle(12.0)
    with pytest.raises(StructureError, match=r"not connected|components|pieces"):
        Molecule.from_openmm(topology, system, np.eye(4, 3) * unit.nanometer)


def test_a_bond_that_only_the_system_has():
    """Cyclopentane whose topology lacks the ring closure would be sampled as a chain."""
    molecule = small_molecule("cyclopentane")
    broken = app.Topology()
    residue = broken.addResidue("CPE", broken.addChain("A"))
    atoms = [broken.addAtom(atom.name, atom.element, residue) for atom in molecule.topology.atoms()]
    carbons = [atom.index for atom in atoms if atom.element is app.element.carbon]
    ring = [tuple(map(int, bond)) for bond in molecule.bonds if set(map(int, bond)) <= set(carbons)]
    for i, j in molecule.bonds:
        if (int(i), int(j)) != ring[0]:
            broken.addBond(atoms[int(i)], atoms[int(j)])
    incomplete = Molecule.from_openmm(broken, molecule.system, molecule.positions)
    with pytest.raises(StructureError, match=r"topology lacks: add it with topology\.addBond"):
        BoltzmannGenerator.for_molecule(incomplete, OpenMMPotential(incomplete))


def test_overlapping_atoms():
    molecule = small_molecule("butane")
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    positions[1] = positions[0] + 1e-4
    crowded = Molecule.from_openmm(molecule.topology, molecule.system, positions * unit.nanometer)
    with pytest.raises(StructureError, match=r"H11 and .*H12 overlap in the structure \(0\.000 nm"):
        BoltzmannGenerator.for_molecule(crowded, OpenMMPotential(crowded))


def test_an_element_without_a_template(tmp_path):
    path = tmp_path / "seleno.pdb"
    lines = ["HETATM    1 SE   LIG A   1       0.000   0.000   0.000  1.00  0.00          SE"]
    lines += [
        f"HETATM    {k}  C{k}  LIG A   1      {1.95 * k:6.3f}  {0.9 * (k % 2):6.3f}   0.000  1.00  0.00           C"
        for k in range(2, 5)
    ]
    lines += ["CONECT    1    2", "CONECT    2    3", "CONECT    3    4"]
    path.write_text("\n".join([*lines, "END", ""]))
    with pytest.raises((ForceFieldError, StructureError), match="LIG"):
        Molecule.from_pdb(path, forcefield="amber14")
