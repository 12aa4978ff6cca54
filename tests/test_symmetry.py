"""Symmetric groups: which are found, that folding is exact, and that nothing else is ever exchanged."""

import math

import numpy as np
import pytest
import torch
from openmm import unit
from small_molecules import DATA, harmonic_molecule, small_molecule

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.internal import dihedral_angle
from boltzgen.energy import CompiledPotential, OpenMMPotential
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.placement import hydrogen_density
from boltzgen.sampling.domain import domain_of

FOLDED = GeneratorConfig(
    fold_symmetry=True, torsion_layers=2, stiff_layers=2, torsion_hidden=16, stiff_hidden=16, hydrogen_hidden=16
)
# order of the group and number of atoms that get another label
GROUPS = {
    "ALA": {"HB1": (3, 3)},
    "ASP": {"OD1": (2, 2)},
    "LYS": {"HZ1": (3, 3)},
    "PHE": {"CD1": (2, 8)},
    "TYR": {"CD1": (2, 8)},
    "VAL": {"HG11": (3, 3), "HG21": (3, 3)},
    "ASN": {},  # amide NH2: its torsion is stiff
}
CAPS = {"H1": (3, 3)}


def roughened(molecule, potential, config=FOLDED, scale=0.05, dtype=torch.float64):
    """A generator in which no layer is the identity."""
    generator = BoltzmannGenerator.for_molecule(molecule, potential, config=config, dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng, dtype=dtype))
    return generator


@pytest.fixture(scope="module")
def residues():
    """ACE-X-NME with CHARMM36m and its potential, built once each."""
    built = {}

    def get(name):
        if name not in built:
            molecule = Molecule.from_pdb(DATA / "capped" / f"{name}.pdb")
            built[name] = molecule, CompiledPotential(molecule, compile=False)
        return built[name]

    return get


@pytest.fixture(scope="module")
def tyrosine(residues):
    return roughened(*residues("TYR"))


@pytest.fixture(scope="module")
def methanol():
    molecule = small_molecule("methanol")
    return molecule, OpenMMPotential(molecule)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_that_a_rotation_maps_onto_themselves_are_found(residues, name):
    molecule, potential = residues(name)
    chart = CoordinateChart.for_molecule(molecule, potential, fold_symmetry=True)
    found = {
        molecule.atom_names[min(group.members)]: (group.order, len(group.moved))
        for group in chart.symmetry
        if molecule.atom_label(group.members[0]).startswith(name)
    }
    assert found == GROUPS[name]
    caps = [group for group in chart.symmetry if molecule.atom_label(group.members[0])[:3] in ("ACE", "NME")]
    assert [(group.order, len(group.moved)) for group in caps] == [(3, 3), (3, 3)]


def test_relabelling_turns_the_group_angle_by_its_share_of_the_circle(tyrosine):
    """On structures far from the reference, where the branches are not evenly spread."""
    flow, molecule = tyrosine.flow, tyrosine.molecule
    rng = torch.Generator().manual_seed(2)
    positions = torch.as_tensor(molecule.positions.value_in_unit(unit.nanometer))
    frames = positions + 0.02 * torch.randn(50, *positions.shape, generator=rng, dtype=torch.float64)
    for k, group in enumerate(flow.folding.groups):
        before = flow.folding.angle(k, frames)
        after = flow.folding.angle(k, frames[:, list(group.permutation)])
        turn = torch.remainder(after - before, 2 * math.pi)
        torch.testing.assert_close(turn, torch.full_like(turn, 2 * math.pi / group.order), rtol=0, atol=1e-9)


def test_every_configuration_has_one_representative(tyrosine):
    """All 2 x 3 x 3 relabellings of a configuration lead to the same one, which has every angle in its interval."""
    folding = tyrosine.flow.folding
    assert [group.order for group in folding.groups] == [2, 3, 3]
    positions, _ = tyrosine.sample_and_log_prob(100)
    expected = folding.representative(positions)
    for k, group in enumerate(folding.groups):
        deviation = torch.remainder(folding.angle(k, expected) - group.centre + math.pi, 2 * math.pi) - math.pi
        assert float(deviation.abs().max()) <= math.pi / group.order + 1e-9
    for _ in range(5):
        relabelled = folding.relabel(positions, folding.draw(len(positions), torch.Generator().manual_seed(3)))
        assert not torch.equal(relabelled, positions)
        assert torch.equal(folding.representative(relabelled), expected)


def test_samples_are_spread_over_all_labels(tyrosine):
    """The group angle of samples falls into each relabelled interval equally often (three standard errors)."""
    n = 3000
    positions, _ = tyrosine.sample_and_log_prob(n)
    for k, group in enumerate(tyrosine.flow.folding.groups):
        turns = (tyrosine.flow.folding.angle(k, positions) - group.centre) * group.order / (2 * math.pi)
        counts = torch.bincount(torch.remainder(torch.round(turns), group.order).long(), minlength=group.order)
        error = math.sqrt(n * (1 / group.order) * (1 - 1 / group.order))
        assert float((counts - n / group.order).abs().max()) < 3.5 * error


@pytest.mark.parametrize("name", ["ASP", "PHE"])
def test_hydrogens_know_folded_heavy_atoms_as_the_whole_flow_does(residues, name):
    """q(x) / q(x_H | x_C) is a function of the heavy atoms alone, whatever their labels: q(x_C)."""
    generator = roughened(*residues(name))
    density = hydrogen_density(generator)
    coordinates = density.variables.coordinates
    positions, log_q = generator.sample_and_log_prob(100)
    heavy = positions[:, coordinates.heavy]
    with torch.no_grad():
        others, log_q_others = density.sample(heavy, generator.rng)
        assert torch.equal(others[:, coordinates.heavy], heavy)
        torch.testing.assert_close(density.log_prob(others), log_q_others, rtol=0, atol=1e-8)
        of_heavy = log_q - density.log_prob(positions)
        # both hold the constants of the chart in single precision, which they combine in another order
        torch.testing.assert_close(generator.log_prob(others) - log_q_others, of_heavy, rtol=0, atol=1e-6)
        moved = positions[:, list(generator.coordinates.symmetry[0].permutation)]
        torch.testing.assert_close(generator.log_prob(moved) - density.log_prob(moved), of_heavy, rtol=0, atol=1e-6)


def test_log_prob_is_the_density_of_the_sample_under_every_label(tyrosine):
    positions, log_q = tyrosine.sample_and_log_prob(500)
    with torch.no_grad():
        torch.testing.assert_close(tyrosine.log_prob(positions), log_q, rtol=0, atol=1e-9)
        for group in tyrosine.coordinates.symmetry:
            relabelled = positions[:, list(group.permutation)]
            torch.testing.assert_close(tyrosine.log_prob(relabelled), log_q, rtol=0, atol=1e-9)
    assert tyrosine.contains(positions.numpy()).all()


def test_relabelling_never_changes_handedness(tyrosine):
    positions, _ = tyrosine.sample_and_log_prob(2000)
    assert domain_of(tyrosine.molecule)(positions.numpy()).all()
    # an odd permutation of a methyl group is an inversion: outside
    h1, h2, _ = tyrosine.coordinates.symmetry[1].members
    order = list(range(tyrosine.molecule.n_atoms))
    order[h1], order[h2] = h2, h1
    assert not tyrosine.contains(positions[:, order].numpy()).any()


def test_prochiral_labels_are_outside_the_domain(residues):
    """The methyls of valine and the hydrogens of a CH2 are not exchanged, and exchanging them leaves the domain."""
    for residue, exchanged in (("VAL", ("CG1", "CG2")), ("ASP", ("HB2", "HB3"))):
        molecule, potential = residues(residue)
        generator = roughened(molecule, potential)
        positions, _ = generator.sample_and_log_prob(50)
        labels = [index for name in exchanged for index, other in enumerate(molecule.atom_names) if other == name]
        assert len(labels) == 2
        assert all(labels[0] not in group.moved for group in generator.coordinates.symmetry)
        order = list(range(molecule.n_atoms))
        order[labels[0]], order[labels[1]] = labels[1], labels[0]
        assert not generator.contains(positions[:, order].numpy()).any()


def test_density_integrates_to_one_over_the_full_circle(methanol):
    """At three equal hydrogens the integral over the torsion is the density of the stiff coordinates, in closed form.

    The flow of the torsion is rough; the stiff coordinates are as in the harmonic approximation, a normal
    distribution that does not depend on the torsion.
    """
    molecule, potential = methanol
    generator = BoltzmannGenerator.for_molecule(molecule, potential, config=FOLDED, dtype=torch.float64)
    flow, rng = generator.flow, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in flow.hydrogens.torsion_network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    (group,) = flow.chart.symmetry
    coordinates = torch.tensor([row.centre for row in flow.chart.rows], dtype=torch.float64)
    atoms = [row.atoms for row in flow.chart.rows]
    for wanted in ("bond", "angle"):
        rows = [i for i, row in enumerate(flow.chart.rows) if row.kind == wanted and atoms[i][0] in group.members]
        assert len(rows) == 3
        coordinates[rows] = coordinates[rows].mean()
    for k, sibling in enumerate(group.siblings, start=1):
        coordinates[sibling] = 2 * math.pi * k / 3
    n = 30_000
    frames = coordinates.repeat(n, 1)
    frames[:, group.torsion] = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * math.pi
    positions, log_det = flow.internal.to_cartesian(frames)
    with torch.no_grad():
        density = (flow.log_prob(positions) + log_det).exp()
        whitened = flow.chart.bounded().double()
        variables, log_scale, _ = whitened.inverse(frames[:1, flow._gather][:, sum(flow._n_torsions) :])
    assert float(density.max() / density.min()) > 2  # the test would be weak for a flat density
    normal = -0.5 * float(variables.square().sum()) - 0.5 * variables.shape[1] * math.log(2 * math.pi)
    integral = float(density.mean()) * 2 * math.pi
    assert math.log(integral) == pytest.approx(normal + float(log_scale), abs=1e-3)


def test_log_z_of_a_known_density_is_found(methanol):
    """Folded samples weighted by an unfolded, normalised density: log Z is 0 within its error, both ways."""
    molecule, potential = methanol
    folded = roughened(molecule, potential)
    plain = roughened(molecule, potential, GeneratorConfig(**{**vars(FOLDED), "fold_symmetry": False}))
    for proposal, target in ((folded, plain), (plain, folded)):
        positions, log_q = proposal.sample_and_log_prob(20_000)
        with torch.no_grad():
            weights = (target.log_prob(positions) - log_q).exp().numpy()
        error = weights.std() / math.sqrt(len(weights))
        assert error < 0.05
        assert abs(weights.mean() - 1) < 3.5 * error


def test_branches_turn_with_the_improper_torsions(methanol):
    """Torsion of each branch = torsion of the first + improper torsion: what the group angle is computed from."""
    generator = roughened(*methanol)
    (group,) = generator.coordinates.symmetry
    positions, _ = generator.sample_and_log_prob(20)
    coordinates, _ = generator.flow.internal.to_internal(positions)
    b, a, c = (positions[:, atom] for atom in group.axis)
    torsions = [dihedral_angle(positions[:, member], b, a, c) for member in group.members]
    for torsion, sibling in zip(torsions[1:], group.siblings, strict=True):
        difference = torch.remainder(torsions[0] + coordinates[:, sibling] - torsion + math.pi, 2 * math.pi) - math.pi
        assert float(difference.abs().max()) < 1e-9


def test_a_force_field_that_tells_the_branches_apart_is_not_folded():
    """A methanol of ideal geometry with equal parameters, and one whose force field stretches one of the C-H bonds."""
    angle = math.radians(109.47)
    ring = [
        (math.sin(angle) * math.cos(t), math.sin(angle) * math.sin(t), math.cos(angle)) for t in (0.0, 2.0944, 4.1888)
    ]
    positions = np.array([(0, 0, 0), (0, 0, 0.142), (-0.09, 0, 0.175), *(0.11 * np.array(ring))])
    bonds, elements = [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)], ["C", "O", "H", "H", "H", "H"]
    (group,) = _symmetry(harmonic_molecule(elements, bonds, positions))
    assert sorted(group.members) == [3, 4, 5]
    positions[3] *= 1.3
    assert _symmetry(harmonic_molecule(elements, bonds, positions)) == ()


def _symmetry(molecule):
    return CoordinateChart.for_molecule(
        molecule, CompiledPotential(molecule, compile=False), fold_symmetry=True
    ).symmetry


def test_folding_is_saved_with_the_model(methanol, tmp_path):
    generator = roughened(*methanol, dtype=torch.float32)
    generator.save(tmp_path / "model.safetensors")
    loaded = BoltzmannGenerator.load(tmp_path / "model.safetensors")
    assert loaded.coordinates.symmetry == generator.coordinates.symmetry
    assert len(loaded.coordinates.symmetry) == 1
    for ours, theirs in zip(generator.sample_and_log_prob(50), loaded.sample_and_log_prob(50), strict=True):
        assert torch.equal(ours, theirs)
