"""Hydrogens drawn group by group: what each group sees, what it does not, and the harmonic approximation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from boltzgen.energy import CompiledPotential
from boltzgen.flows.hydrogen_groups import find_groups
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

DATA = Path(__file__).resolve().parent / "data"
SMALL = GeneratorConfig(torsion_hidden=16, stiff_hidden=16, hydrogen_hidden=16, torsion_layers=2, stiff_layers=2)


def roughened(generator, scale=0.1):
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
    return generator


@pytest.fixture(scope="module")
def pentapeptide():
    """ACE-ALA5-NME with random networks, float64."""
    molecule = Molecule.from_pdb(DATA / "ace_ala5_nme.pdb")
    potential = CompiledPotential(molecule, compile=False)
    return roughened(BoltzmannGenerator.for_molecule(molecule, potential, config=SMALL, dtype=torch.float64))


def bonds_from(molecule, atom):
    """Number of bonds from an atom to every other, by breadth-first search over the topology."""
    neighbours = {i: set() for i in range(molecule.n_atoms)}
    for i, j in molecule.bonds:
        neighbours[int(i)].add(int(j))
        neighbours[int(j)].add(int(i))
    distance, shell, bonds = {atom: 0}, {atom}, 0
    while shell:
        bonds += 1
        shell = {j for i in shell for j in neighbours[i]} - distance.keys()
        distance |= dict.fromkeys(shell, bonds)
    return np.array([distance[i] for i in range(molecule.n_atoms)])


def hydrogen_inputs(flow, generator, n=4):
    context = flow.bounded.centre.new_empty(0, n)
    torsions, z, _ = flow.heavy.place(flow.heavy.draw(n, context, generator), context)
    return torsions, flow.bounded.factor @ z


def test_every_hydrogen_coordinate_is_in_one_group(pentapeptide):
    flow = pentapeptide.flow
    groups = flow.hydrogens.layout.groups
    torsions = [group.torsion for group in groups if group.torsion is not None]
    stiff = [k for group in groups for k in group.stiff]
    assert sorted(torsions) == list(range(flow._n_torsions[1]))
    assert sorted(stiff) == list(range(flow._n_stiff[1]))
    hydrogens_of = {group.parent for group in groups}
    elements = pentapeptide.molecule.elements
    assert all(elements[parent] != "H" for parent in hydrogens_of)


def test_what_a_group_sees_lies_within_reach(pentapeptide):
    """By bonds counted over the topology, not the Z-matrix; and vicinal groups see one another."""
    flow, molecule = pentapeptide.flow, pentapeptide.molecule
    rows, chart = flow.chart.rows, flow.chart
    torsions, stiff = chart.indices(True, False), chart.indices(False, False)
    groups = flow.hydrogens.layout.groups
    for group in groups:
        distance = bonds_from(molecule, group.parent)
        assert group.near_torsions == tuple(
            k for k, i in enumerate(torsions) if distance[list(rows[i].atoms[1:3])].min() <= SMALL.hydrogen_reach
        )
        assert group.near_stiff == tuple(
            k for k, i in enumerate(stiff) if distance[rows[i].atoms[0]] <= SMALL.hydrogen_reach
        )
        for number, other in enumerate(groups):
            if other is not group and distance[other.parent] <= 2:
                assert other.level != group.level
                assert (number in group.earlier) == (other.level < group.level)


def test_bonds_that_close_rings_count():
    """Proline: CD is bound to N, which the Z-matrix reaches only round the ring."""
    molecule = Molecule.from_pdb(DATA / "capped" / "PRO.pdb")
    generator = BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False), config=SMALL)
    names = list(molecule.atom_names)
    (group,) = (g for g in generator.flow.hydrogens.layout.groups if g.parent == names.index("CD"))
    chart = generator.coordinates
    seen = {chart.rows[chart.indices(False, False)[k]].atoms[0] for k in group.near_stiff}
    distance = bonds_from(molecule, group.parent)
    assert distance[names.index("CA")] == 2
    assert seen >= {i for i in range(molecule.n_atoms) if distance[i] <= 3 and molecule.elements[i] != "H"} - {
        int(a) for a in chart.internal.zmatrix.atoms[:1]
    }


def test_a_far_heavy_coordinate_changes_nothing(pentapeptide):
    """Derivatives of the density of one group's hydrogens with respect to every heavy coordinate.

    A group depends on others through earlier groups alone, so the bound is 3 + 2 bonds for each lower level.
    """
    flow = pentapeptide.flow
    heavy_torsions, heavy_stiff = hydrogen_inputs(flow, torch.Generator().manual_seed(0), n=1)
    heavy_torsions.requires_grad_(True)
    heavy_stiff = heavy_stiff.detach().requires_grad_(True)
    given = torch.cat([flow.heavy.features(heavy_torsions), heavy_stiff])
    _, stiff, _ = flow.hydrogens.sample(given, torch.Generator().manual_seed(3))
    chart = flow.chart
    rows = [chart.rows[i] for i in chart.indices(True, False)], [chart.rows[i] for i in chart.indices(False, False)]
    far = 0
    for group in flow.hydrogens.layout.groups:
        distance = bonds_from(pentapeptide.molecule, group.parent)
        bound = SMALL.hydrogen_reach + 2 * group.level
        gradients = torch.autograd.grad(
            stiff[list(group.stiff)].sum(), (heavy_torsions, heavy_stiff), retain_graph=True
        )
        for gradient, kinds in zip(gradients, rows, strict=True):
            for value, row in zip(gradient[:, 0].abs(), kinds, strict=True):
                nearest = distance[list(row.atoms)].min()
                if nearest > bound:
                    assert value == 0
                    far += 1
        assert float(gradients[1].abs().max()) > 1e-3
    assert far > 500


def test_density_of_hydrogens_against_autograd(pentapeptide):
    """log q by the Jacobian of the map from base variables."""
    hydrogens, flow = pentapeptide.flow.hydrogens, pentapeptide.flow
    heavy_torsions, heavy_stiff = hydrogen_inputs(flow, torch.Generator().manual_seed(0), n=1)
    given = torch.cat([flow.heavy.features(heavy_torsions), heavy_stiff]).detach()
    n_torsions, n_stiff = hydrogens.n_torsions, hydrogens.n_stiff

    def placed(base):
        return torch.cat(hydrogens(base[:n_torsions, None], base[n_torsions:, None], given)[:2])[:, 0]

    rng = torch.Generator().manual_seed(4)
    turns = (2 * torch.rand(n_torsions, generator=rng).double() - 1) * np.pi
    base = torch.cat([turns, torch.randn(n_stiff, generator=rng)])
    jacobian = torch.autograd.functional.jacobian(placed, base)
    values = placed(base)[:, None]
    log_q = hydrogens.log_prob(values[:n_torsions], values[n_torsions:], given)
    normal = -0.5 * (base[n_torsions:].square() + np.log(2 * np.pi)).sum()
    expected = normal - n_torsions * np.log(2 * np.pi) - torch.linalg.slogdet(jacobian).logabsdet
    assert float((log_q[0] - expected).detach().abs()) < 1e-8


def test_untrained_hydrogens_follow_the_harmonic_approximation(dipeptide, potential):
    """Covariance of all stiff coordinates against that of the chart: within each group and with what it sees.

    100,000 samples: an element of a correlation matrix has a standard error of 0.003 at most.
    """
    generator = BoltzmannGenerator.for_molecule(dipeptide, potential, dtype=torch.float64)
    flow, n = generator.flow, 100_000
    with torch.no_grad():
        heavy_torsions, heavy_stiff = hydrogen_inputs(flow, generator.rng, n)
        given = torch.cat([flow.heavy.features(heavy_torsions), heavy_stiff])
        _, stiff, _ = flow.hydrogens.sample(given, generator.rng)
    found = torch.cov(torch.cat([heavy_stiff, stiff])).numpy()
    expected = flow.chart.factor @ flow.chart.factor.T
    n_heavy = flow._n_stiff[0]
    for group in flow.hydrogens.layout.groups:
        own = [n_heavy + k for k in group.stiff]
        assert np.abs(found - expected)[np.ix_(own, own)].max() < 0.02
        assert np.abs(found - expected)[np.ix_(own, list(group.near_stiff))].max() < 0.02
    assert np.abs(expected - np.eye(len(expected)))[n_heavy:].max() > 0.3  # there is something to reproduce


def test_all_in_reach_is_the_whole_harmonic_approximation(dipeptide, potential):
    """With everything in reach, the regressions and factors together are the Cholesky factor of the chart."""
    chart = BoltzmannGenerator.for_molecule(dipeptide, potential).coordinates
    groups = find_groups(chart, reach=100)
    assert all(len(group.near_stiff) == len(chart.indices(False, False)) for group in groups)
    log_det = sum(np.linalg.slogdet(group.covariance)[1] for group in groups)
    n_heavy = len(chart.indices(False, False))
    exact = 2 * np.log(np.diagonal(chart.factor)[n_heavy:]).sum()
    # groups further than two bonds apart still do not see each other: a small loss of information, never a gain
    assert exact - 1e-9 <= log_det < exact + 0.5


def test_cost_of_a_group_does_not_grow_with_the_chain():
    """Inputs and parameters per group: three alanines against five."""
    sizes = []
    for name in ("ace_ala3_nme", "ace_ala5_nme"):
        molecule = Molecule.from_pdb(DATA / f"{name}.pdb")
        generator = BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False))
        hydrogens = generator.flow.hydrogens
        n_parameters = sum(p.numel() for p in hydrogens.parameters())
        sizes.append((max(hydrogens.layout.n_seen), n_parameters / len(hydrogens.layout.groups)))
    assert sizes[1][0] == pytest.approx(sizes[0][0], rel=0.05)  # three residues are almost all ends
    assert sizes[1][1] == pytest.approx(sizes[0][1], rel=0.05)
