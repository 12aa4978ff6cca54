"""Constrained bonds: what is accepted, exact densities on the constraint surface, and the mass metric."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from scipy.integrate import quad
from scipy.special import ive

import boltzgen as bg
from boltzgen.coordinates.chart import CONSTRAINED, CoordinateChart
from boltzgen.coordinates.reference import minimized_positions
from boltzgen.energy import CompiledPotential, OpenMMPotential, log_mass_metric
from boltzgen.energy.fingerprint import fingerprint
from boltzgen.errors import EstimateError, ForceFieldError, PotentialError, StructureError
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.free_energy import log_z, perturb
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.pretraining import pretrain
from boltzgen.sampling import (
    BatchedLangevin,
    annealed_importance,
    constrained_frames,
    domain_of,
    flow_chains,
    openmmtools_tempering,
    parallel_tempering,
)
from boltzgen.sampling.constraints import constraints_of

testsystems = pytest.importorskip("openmmtools.testsystems")

KT = 8.31446261815324e-3 * 300
CHAIN_ANGLE, CHAIN_BEND = math.radians(100), 6.0  # kJ/mol/rad^2: wide enough for the mass metric to show
CHAIN_MASSES = np.array([16.0, 1.0, 1.0, 16.0])  # light in the middle, where the constraints meet


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Batches here are too small to share out; on a busy machine the threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def alanine(constraints) -> Molecule:
    """Alanine dipeptide of openmmtools in vacuum."""
    source = testsystems.AlanineDipeptideVacuum(constraints=constraints)
    return Molecule.from_openmm(source.topology, source.system, source.positions, 300 * unit.kelvin)


@pytest.fixture(scope="module")
def constrained() -> Molecule:
    return alanine(app.HBonds)


@pytest.fixture(scope="module")
def generator(constrained) -> BoltzmannGenerator:
    return BoltzmannGenerator.for_molecule(constrained, seed=1)


@pytest.fixture(scope="module")
def precise(constrained, generator) -> BoltzmannGenerator:
    return BoltzmannGenerator.for_molecule(constrained, generator.potential, dtype=torch.float64, seed=1)


def carbons(positions, bonds, constraints, masses) -> Molecule:
    """Carbons in a topology, with constraints on given pairs at the distances in the structure and no force yet."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("TOY", topology.addChain("A"))
    atoms = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(len(positions))]
    for mass in masses:
        system.addParticle(mass)
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    for i, j in constraints:
        system.addConstraint(i, j, float(np.linalg.norm(positions[i] - positions[j])))
    return Molecule.from_openmm(topology, system, positions, 300 * unit.kelvin)


def chain() -> Molecule:
    """Four atoms, all bonds constrained, a soft energy on the angles and none on the torsion."""
    bend = math.pi - CHAIN_ANGLE
    step = 0.15 * np.array([[0, 0, 0], [1, 0, 0], [math.cos(bend), math.sin(bend), 0], [1, 0, 0]])
    positions = np.cumsum(step, axis=0) + [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.01]]
    bonds = [(0, 1), (1, 2), (2, 3)]
    molecule = carbons(positions, bonds, bonds, CHAIN_MASSES)
    force = openmm.HarmonicAngleForce()
    for i in range(2):
        force.addAngle(i, i + 1, i + 2, CHAIN_ANGLE, CHAIN_BEND)
    molecule.system.addForce(force)
    return Molecule.from_openmm(molecule.topology, molecule.system, positions, 300 * unit.kelvin)


def chain_weight(theta: float) -> float:
    return math.sin(theta) * math.exp(-0.5 * CHAIN_BEND * (theta - CHAIN_ANGLE) ** 2 / KT)


def chain_mean(metric: bool) -> float:
    """<cos^2> of the first angle of the chain: of the target, or of dynamics, where both angles enter det Z."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    theta = 0.5 * math.pi * (nodes + 1)
    first, second = np.meshgrid(theta, theta, indexing="ij")
    marginal = weights * np.array([chain_weight(t) for t in theta])
    density = np.outer(marginal, marginal)
    if metric:
        light, heavy = 1 / CHAIN_MASSES[1], 1 / CHAIN_MASSES[0]
        coupling = light**2 / ((light + heavy) * 2 * light)
        # Three bonds in a row: the determinant of a tridiagonal matrix with ones on its diagonal.
        density = density * np.sqrt(1 - coupling * (np.cos(first) ** 2 + np.cos(second) ** 2))
    return float((density * np.cos(first) ** 2).sum() / density.sum())


class TestMolecules:
    def test_constraints_are_read_and_reported(self, constrained):
        table = dict(constrained.constraints)
        assert len(table) == 12
        for k in range(constrained.system.getNumConstraints()):
            i, j, distance = constrained.system.getConstraintParameters(k)
            assert table[min(i, j), max(i, j)] == distance.value_in_unit(unit.nanometer)
        assert "12 bonds of constant length" in constrained.report()
        assert "ALA2:N-ALA2:H 0.1010" in constrained.report().replace("\n", " ")
        assert "constraints" not in alanine(None).report()

    @pytest.mark.parametrize(("constraints", "expected"), [(None, 0), ("hbonds", 12), ("allbonds", 21)])
    def test_from_pdb_builds_what_openmm_builds(self, alanine_dipeptide_pdb, constraints, expected):
        molecule = Molecule.from_pdb(alanine_dipeptide_pdb, "amber99sbildn", "obc2", constraints=constraints)
        pdb = app.PDBFile(str(alanine_dipeptide_pdb))
        theirs = app.ForceField("amber99sbildn.xml", "implicit/obc2.xml").createSystem(
            pdb.topology,
            nonbondedMethod=app.NoCutoff,
            constraints={None: None, "hbonds": app.HBonds, "allbonds": app.AllBonds}[constraints],
        )
        assert len(molecule.constraints) == theirs.getNumConstraints() == expected
        x = torch.as_tensor(np.array(molecule.positions.value_in_unit(unit.nanometer)))[None]
        energy = OpenMMPotential(theirs, platform="Reference", simplify=False)(x)
        assert float(CompiledPotential(molecule)(x)) == pytest.approx(float(energy), abs=1e-6)

    def test_an_unknown_kind_of_constraint_is_refused(self, alanine_dipeptide_pdb):
        with pytest.raises(ForceFieldError, match="hbonds, allbonds"):
            Molecule.from_pdb(alanine_dipeptide_pdb, "amber14", constraints="hangles")

    def test_constrained_angles_are_refused_by_name(self):
        with pytest.raises(StructureError, match=r"ACE1:\w+ and ACE1:\w+ at a constant distance.*HBonds"):
            alanine(app.HAngles)

    def test_contradictory_constraints_are_refused(self, constrained):
        system = copy.deepcopy(constrained.system)
        i, j, distance = system.getConstraintParameters(0)
        system.addConstraint(j, i, distance)  # the same once more changes nothing
        positions = constrained.positions
        assert len(Molecule.from_openmm(constrained.topology, system, positions).constraints) == 12
        system.addConstraint(i, j, 1.1 * distance)
        with pytest.raises(StructureError, match="two constraints between"):
            Molecule.from_openmm(constrained.topology, system, positions)

    def test_a_constrained_bond_that_closes_a_ring_is_refused(self):
        corners = 0.15 * np.array([[0, 0, 0], [1, 0, 0.1], [1, 1, 0], [0, 1, 0.1]])
        bonds = [(0, 1), (1, 2), (2, 3), (0, 3)]
        molecule = carbons(corners, bonds, bonds, [12.0] * 4)
        with pytest.raises(StructureError, match="closes a ring"):
            CoordinateChart.for_molecule(molecule, OpenMMPotential(molecule, platform="Reference"))

    def test_potentials_of_a_molecule_take_its_constraints_and_those_of_a_system_do_not(self, constrained):
        x = torch.as_tensor(np.array(constrained.positions.value_in_unit(unit.nanometer)))[None]
        assert bg.energy.potential(constrained).name == "compiled"
        capped = OpenMMPotential(constrained, platform="Reference").capped(1e5)
        # The minimum is within the range where nothing is capped.
        assert float(capped(x)) == pytest.approx(float(CompiledPotential(constrained)(x)), abs=1e-6)
        with pytest.raises(PotentialError, match="12 constraints"):
            CompiledPotential(SimpleNamespace(system=constrained.system, positions=constrained.positions))

    def test_constraints_tell_systems_apart(self, constrained):
        longer = copy.deepcopy(constrained.system)
        longer.setConstraintParameters(0, *longer.getConstraintParameters(0)[:2], 0.12)
        assert fingerprint(longer) != fingerprint(constrained.system)

    def test_samples_with_constraints_are_not_perturbed_to_a_system_without(self, generator):
        ensemble = generator.sample(10)
        with pytest.raises(EstimateError, match="12 constraints, the other molecule 0"):
            perturb(ensemble, alanine(None))


class TestChart:
    def test_constrained_bonds_are_constants(self, constrained, generator):
        chart = generator.coordinates
        rows = [row for row in chart.rows if row.kind == CONSTRAINED]
        lengths = {frozenset(pair): nm for pair, nm in constrained.constraints}
        assert {frozenset(row.atoms): row.centre for row in rows} == lengths
        assert {(row.width, row.limit) for row in rows} == {(0.0, 0.0)}
        assert chart.dimension == 60 - 12
        assert sum(len(chart.indices(free, of)) for free in (True, False) for of in (True, False)) == chart.dimension
        assert sum(line.startswith("constrained bond") for line in chart.table().splitlines()) == 12
        assert "12 bonds constant" in chart.domain()
        assert "nm^48" in chart.domain()

    def test_the_reference_structure_satisfies_the_constraints_and_is_a_minimum(self, constrained, generator):
        chart = generator.coordinates
        positions = minimized_positions(constrained)
        assert np.abs(constrained.constraints.errors(positions)).max() < 2e-9
        coordinates = chart.internal.to_internal(torch.as_tensor(positions)[None])[0].requires_grad_()
        energy = generator.potential(chart.internal.to_cartesian(coordinates)[0])
        (gradient,) = torch.autograd.grad(energy.sum(), coordinates)
        widths = torch.tensor([row.width for row in chart.rows]).double()
        # Constrained bonds have a width of zero. OpenMM minimises with constraints as stiff springs, and stops early.
        assert float((gradient * widths).abs().max()) < 0.1 * constrained.kT

    def test_methyls_with_unequal_constraints_are_not_folded(self, constrained, generator):
        system = copy.deepcopy(constrained.system)
        i, j, distance = next(
            row
            for row in map(system.getConstraintParameters, range(12))
            if constrained.atom_label(min(row[:2])) == "ACE1:CH3" or constrained.atom_label(max(row[:2])) == "ACE1:CH3"
        )
        index = next(k for k in range(12) if system.getConstraintParameters(k)[:2] == [i, j])
        system.setConstraintParameters(index, i, j, distance + 0.001 * unit.nanometer)
        molecule = Molecule.from_openmm(constrained.topology, system, constrained.positions)
        other = CoordinateChart.for_molecule(molecule, generator.potential)
        assert len(other.symmetry) == len(generator.coordinates.symmetry) - 1

    def test_widths_from_frames(self, precise):
        with torch.no_grad():
            frames, _ = precise.sample_and_log_prob(400)
        refined = precise.coordinates.refined(frames.numpy())
        assert [row.kind for row in refined.rows] == [row.kind for row in precise.coordinates.rows]
        (i, j), _ = next(iter(precise.molecule.constraints))
        far = frames.numpy().copy()
        far[7, j] += 0.01 * (far[7, j] - far[7, i]) / np.linalg.norm(far[7, j] - far[7, i])
        with pytest.raises(StructureError, match="number 7"):
            precise.coordinates.refined(far)


class TestDensity:
    def test_volume_against_the_coarea_formula(self, precise):
        """``delta(r - r0) dx``: the area of the surface over the Gram determinant of the constraints' gradients."""
        flow, chart = precise.flow, precise.coordinates
        x, _ = precise.sample_and_log_prob(4)
        coordinates = chart.internal.to_internal(x)[0].detach()
        moving = [i for i, row in enumerate(chart.rows) if row.kind != CONSTRAINED]

        def place(q, base):
            return chart.internal.to_cartesian(base.index_copy(0, torch.tensor(moving), q)[None])[0][0].reshape(-1)

        pairs = torch.as_tensor(precise.molecule.constraints.atoms)
        lengths = lambda flat: (flat.reshape(-1, 3)[pairs[:, 0]] - flat.reshape(-1, 3)[pairs[:, 1]]).norm(dim=1)
        for base in coordinates:
            by_coordinates = torch.autograd.functional.jacobian(lambda q, b=base: place(q, b), base[moving])
            points = place(base[moving], base).reshape(-1, 3)
            axes = torch.eye(3, dtype=torch.float64)
            moves = [axis.expand(len(points), 3).reshape(-1) for axis in axes]
            turns = [torch.linalg.cross(axis.expand(len(points), 3), points).reshape(-1) for axis in axes]
            tangents = torch.cat([by_coordinates, torch.stack(moves + turns, dim=1)], dim=1)
            gradients = torch.autograd.functional.jacobian(lengths, points.reshape(-1))
            area = 0.5 * torch.linalg.slogdet(tangents.T @ tangents).logabsdet
            gram = 0.5 * torch.linalg.slogdet(gradients @ gradients.T).logabsdet
            volume = flow.internal.log_volume(base[None])[0]
            assert float(area - gram - volume) == pytest.approx(0, abs=1e-7)

    def test_log_det_of_the_flow_against_autograd(self, precise):
        """From base variables to the coordinates that move, with the layers made different from the identity."""
        flow = copy.deepcopy(precise.flow)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        chart = flow.chart
        moving = torch.tensor([i for i, row in enumerate(chart.rows) if row.kind != CONSTRAINED])
        coordinates, log_q = flow.sample_internal(3, torch.Generator().manual_seed(0))
        assert torch.allclose(log_q, flow.log_prob_internal(coordinates), atol=1e-9)

        def base(q, row):
            """Base variables, whose density is known, of the coordinates that move."""
            full = flow.folding.variables(row.index_copy(0, moving, q)[None])[:, flow._gather]
            free, stiff, _ = full.split([sum(flow._n_torsions), sum(flow._n_stiff), len(flow.constrained)], dim=1)
            z, _, _ = flow.bounded.inverse(stiff)
            torsions, more_torsions = free.T.split(list(flow._n_torsions))
            heavy, hydrogen = z.T.split(list(flow._n_stiff))
            none = z.new_empty(0, 1)
            u, _ = flow.heavy.torsions.inverse(torsions, none)
            w, _ = flow.heavy.stiff.inverse(heavy, torch.cat([none, flow.heavy.features(torsions)]))
            v, y, _ = flow.hydrogens.inverse(more_torsions, hydrogen, flow._given_to_hydrogens(torsions, heavy, none))
            return torch.cat([u, v, w, y])[:, 0]

        n_torsions = sum(flow._n_torsions)
        for row, value in zip(coordinates.detach(), log_q, strict=True):
            z = base(row[moving], row)
            jacobian = torch.autograd.functional.jacobian(lambda q, r=row: base(q, r), row[moving])
            normal = -0.5 * (z[n_torsions:].square().sum() + sum(flow._n_stiff) * math.log(2 * math.pi))
            density = normal - n_torsions * math.log(2 * math.pi) + torch.linalg.slogdet(jacobian).logabsdet
            assert float(density.detach()) == pytest.approx(float(value.detach()), abs=1e-7)

    def test_samples_keep_constraints_and_handedness_and_come_back(self, constrained, generator):
        x, log_q = generator.sample_and_log_prob(500)
        # Atoms lie within 1 nm of the origin, where float32 has steps of 6e-8 nm.
        assert np.abs(constrained.constraints.errors(x.double().numpy())).max() < 3e-7
        assert domain_of(constrained)(x.double().numpy()).all()
        with torch.no_grad():
            assert torch.allclose(generator.log_prob(x), log_q, atol=2e-3)
        assert generator.contains(x.numpy()).all()

    def test_exact_in_double_precision(self, precise):
        x, log_q = precise.sample_and_log_prob(100)
        assert np.abs(precise.molecule.constraints.errors(x.numpy())).max() < 1e-14
        with torch.no_grad():
            assert torch.allclose(precise.log_prob(x), log_q, atol=1e-9)

    def test_near_the_constraints_they_are_taken_as_kept_and_far_from_them_the_density_is_zero(self, precise):
        x, log_q = precise.sample_and_log_prob(5)
        hydrogens = set(precise.molecule.hydrogens.tolist())
        i, h = next((i, j) if j in hydrogens else (j, i) for (i, j), _ in precise.molecule.constraints)
        along = torch.nn.functional.normalize(x[:, h] - x[:, i], dim=1)
        for off, kept in ((0.0019, True), (-0.0019, True), (0.0021, False), (-0.0021, False)):
            moved = x.clone()
            moved[:, h] += off * along  # changes no other coordinate
            with torch.no_grad():
                value = precise.log_prob(moved)
            assert torch.allclose(value, log_q, atol=1e-9) if kept else bool((value == -torch.inf).all())
            assert bool((precise.flow.contains(moved) == kept).all())

    @pytest.mark.parametrize("kind", [app.HBonds, app.AllBonds])
    def test_log_z_of_a_harmonic_molecule(self, kind):
        source = alanine(kind)
        chart = CoordinateChart.for_molecule(source, CompiledPotential(source))
        molecule, truth = harmonic(source, chart)
        ensemble = BoltzmannGenerator.for_molecule(molecule, seed=0).sample(20_000)
        found = log_z(ensemble)
        assert found.unit == f"nm^{3 * 22 - 6 - len(source.constraints)}"
        half = 0.5 * (found.high - found.low)
        assert half < 0.05
        assert abs(found.value - truth) < 2 * half  # four standard errors


@pytest.mark.parametrize(("kind", "fixed"), [(None, 0), (app.HBonds, 0), (app.AllBonds, 9)])
def test_fixed_hydrogens_leave_the_powers_of_the_heavy_atoms(kind, fixed):
    """Ten heavy atoms: of the constraints those between two of them count, nine where all bonds are constrained."""
    molecule = alanine(kind)
    generator = BoltzmannGenerator.for_molecule(molecule, hydrogens="network", seed=0)
    heavy = set(molecule.heavy_atoms.tolist())
    assert sum(i in heavy and j in heavy for (i, j), _ in molecule.constraints) == fixed
    assert generator.sample(20).log_z.unit == f"nm^{3 * 10 - 6 - fixed}"


def harmonic(source: Molecule, chart: CoordinateChart) -> tuple[Molecule, float]:
    """A molecule whose energy is a sum over internal coordinates, the constraints kept; and its log Z."""
    system = openmm.System()
    for index in range(source.n_atoms):
        system.addParticle(source.system.getParticleMass(index))
    for (i, j), nm in source.constraints:
        system.addConstraint(i, j, nm)
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    total = 0.0
    for row in chart.rows:
        c = row.centre
        if row.kind == CONSTRAINED:
            total += 2 * math.log(c)  # r^2 delta(r - c)
        elif row.kind == "bond":
            bond.addBond(*row.atoms, c, 250_000)
            weight = lambda r, c=c: r**2 * math.exp(-0.5 * 250_000 * (r - c) ** 2 / KT)
            total += math.log(quad(weight, c - 0.05, c + 0.05, points=[c], epsabs=0, epsrel=1e-10)[0])
        elif row.kind == "angle":
            angle.addAngle(*row.atoms, c, 400)
            weight = lambda t, c=c: math.sin(t) * math.exp(-0.5 * 400 * (t - c) ** 2 / KT)
            total += math.log(quad(weight, 0, math.pi, points=[c], epsabs=0, epsrel=1e-10)[0])
        else:
            k = 3.0 if row.kind == "free torsion" else 150.0
            torsion.addTorsion(*row.atoms, 1, c + math.pi, k)
            total += math.log(2 * math.pi * ive(0, k / KT))
    for force in (bond, angle, torsion):
        system.addForce(force)
    return Molecule.from_openmm(source.topology, system, source.positions, source.temperature), total


class TestEndToEnd:
    def test_dipeptide_from_a_file(self, alanine_dipeptide_pdb, tmp_path):
        molecule = Molecule.from_pdb(alanine_dipeptide_pdb, "amber99sbildn", "obc2", constraints="hbonds")
        generator = BoltzmannGenerator.for_molecule(molecule, seed=0)
        bg.anneal(generator, t_start=1200 * unit.kelvin, budget=10_000, on_record=lambda *_: None)
        ensemble = generator.sample(1000)
        assert ensemble.n_defects == 0
        assert np.isfinite(ensemble.log_weights).all()
        assert np.abs(molecule.constraints.errors(ensemble.positions)).max() < 3e-7
        assert domain_of(molecule)(ensemble.positions).all()
        generator.save(tmp_path / "model.safetensors")
        again = BoltzmannGenerator.load(tmp_path / "model.safetensors")
        assert again.molecule.constraints == molecule.constraints
        x = torch.as_tensor(ensemble.positions[:50])
        with torch.no_grad():
            assert torch.equal(again.log_prob(x), generator.log_prob(x))

    def test_tetrapeptide_without_options(self, alanine_dipeptide_pdb):
        pdb = app.PDBFile(str(alanine_dipeptide_pdb.parent / "ace_ala3_nme.pdb"))
        field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
        system = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
        molecule = Molecule.from_openmm(pdb.topology, system, pdb.positions, 300 * unit.kelvin)
        generator = BoltzmannGenerator.for_molecule(molecule)
        assert generator.potential.name == "compiled"
        assert generator.coordinates.dimension == 3 * 42 - 6 - 22
        x, log_q = generator.sample_and_log_prob(200)
        assert np.abs(molecule.constraints.errors(x.double().numpy())).max() < 3e-7
        assert domain_of(molecule)(x.double().numpy()).all()
        with torch.no_grad():
            assert torch.allclose(generator.log_prob(x), log_q, atol=5e-3)

    @pytest.mark.parametrize(
        ("coordinates", "hydrogens"), [("cartesian", "flow"), ("cartesian", "network"), ("internal", "network")]
    )
    def test_other_kinds_of_generators(self, constrained, generator, coordinates, hydrogens):
        other = BoltzmannGenerator.for_molecule(
            constrained,
            generator.potential,
            coordinates=coordinates,
            hydrogens=hydrogens,
            config=GeneratorConfig(cartesian_rounds=2, cartesian_hidden=16, placement_hidden=16),
            dtype=torch.float64,
        )
        x, log_q = other.sample_and_log_prob(50)
        assert np.abs(constrained.constraints.errors(x.numpy())).max() < 1e-14
        with torch.no_grad():
            assert torch.allclose(other.log_prob(x), log_q, atol=1e-7)
        assert torch.isfinite(log_q).all()
        assert torch.isfinite(other.potential(x)).all()

    def test_hydrogens_at_their_minimum_keep_the_constraints(self, constrained, generator):
        other = BoltzmannGenerator.for_molecule(
            constrained, generator.potential, hydrogens="minimized", dtype=torch.float64
        )
        x, _ = other.sample_and_log_prob(3)
        assert np.abs(constrained.constraints.errors(x.numpy())).max() < 1e-14

    def test_all_bonds(self):
        molecule = alanine(app.AllBonds)
        other = BoltzmannGenerator.for_molecule(molecule, hydrogens="network", dtype=torch.float64)
        assert other.coordinates.dimension == 60 - 21
        x, log_q = other.sample_and_log_prob(50)
        assert np.abs(molecule.constraints.errors(x.numpy())).max() < 1e-14
        with torch.no_grad():
            assert torch.allclose(other.log_prob(x), log_q, atol=1e-9)
        with pytest.raises(StructureError, match="moves every heavy atom"):
            BoltzmannGenerator.for_molecule(molecule, other.potential, coordinates="cartesian")


class TestMassMetric:
    def test_against_gradients_by_autograd(self):
        """The definition, with all masses different and every bond constrained."""
        molecule = alanine(app.AllBonds)
        masses = np.linspace(1, 20, molecule.n_atoms)
        random = torch.Generator().manual_seed(0)
        start = torch.as_tensor(np.array(molecule.positions.value_in_unit(unit.nanometer)))
        x = start + 0.01 * torch.randn(4, *start.shape, generator=random, dtype=torch.float64)
        i, j = torch.as_tensor(molecule.constraints.atoms).T
        inverse = torch.as_tensor(1 / masses).repeat_interleave(3)
        found = log_mass_metric(molecule, x, masses)
        direct = []
        for frame in x:
            g = torch.autograd.functional.jacobian(lambda y: (y[i] - y[j]).norm(dim=1), frame).flatten(1)
            z = (g * inverse) @ g.T
            direct.append(0.5 * (torch.linalg.slogdet(z).logabsdet - z.diagonal().log().sum()))
        assert torch.allclose(found, torch.stack(direct), atol=1e-12)
        assert bool((found < 0).all())

    def test_size_in_a_peptide(self, generator):
        """With bonds to hydrogen alone the correction is small, which is why it is often left out."""
        x, _ = generator.sample_and_log_prob(2000)
        assert 0 < float(log_mass_metric(generator.molecule, x).std()) < 2e-3
        assert not bool(log_mass_metric(alanine(None), x).any())

    def test_constrained_dynamics_of_openmm(self):
        """A rigid trimer: OpenMM samples sin(theta) sqrt(1 - c^2 cos^2 theta), the weights make it sin(theta)."""
        n, masses, cosine = 400, (12.0, 2.0, 16.0), 0.25
        single, many = openmm.System(), openmm.System()
        bonds = ((0, 1, 0.15), (1, 2, 0.12))
        for system, copies in ((single, 1), (many, n)):
            for k in range(copies):
                for mass in masses:
                    system.addParticle(mass)
                for i, j, nm in bonds:
                    system.addConstraint(3 * k + i, 3 * k + j, nm)
        random = np.random.default_rng(0)
        u = random.uniform(-1, 1, n)
        start = np.zeros((n, 3, 3))
        start[:, 0, 0], start[:, 2, 0], start[:, 2, 1] = 0.15, 0.12 * u, 0.12 * np.sqrt(1 - u**2)
        integrator = openmm.LangevinMiddleIntegrator(300, 5 / unit.picosecond, 0.004)
        integrator.setRandomNumberSeed(1)
        context = openmm.Context(many, integrator, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(start.reshape(-1, 3))
        context.setVelocitiesToTemperature(300, 2)
        frames = []
        for _ in range(41):
            integrator.step(50)
            positions = context.getState(getPositions=True).getPositions(asNumpy=True)
            frames.append(np.asarray(positions.value_in_unit(unit.nanometer)).reshape(n, 3, 3))
        x = torch.as_tensor(np.concatenate(frames[1:]))
        c2 = trimer_coupling(masses)
        expected = mean_cosine_square(lambda v: math.sqrt(1 - c2 * v * v))
        check_trimer(x, single, expected, n)
        assert expected < cosine + 0.05 < 1 / 3  # the effect is large against the errors

    def test_own_dynamics(self):
        """As OpenMM's, by the batched sampler, at two time steps: the bias of the integrator is within the error."""
        n, masses = 1500, np.array([12.0, 2.0, 16.0])
        system = openmm.System()
        for mass in masses:
            system.addParticle(mass)
        system.addConstraint(0, 1, 0.15)
        system.addConstraint(1, 2, 0.12)
        random = np.random.default_rng(0)
        u = random.uniform(-1, 1, n)
        start = np.zeros((n, 3, 3))
        start[:, 0, 0], start[:, 2, 0], start[:, 2, 1] = 0.15, 0.12 * u, 0.12 * np.sqrt(1 - u**2)
        x = torch.tensor(start, dtype=torch.float32).permute(2, 1, 0).contiguous()
        nothing = lambda x: (x.new_zeros(x.shape[2]), torch.zeros_like(x))
        c2 = trimer_coupling(masses)
        expected = mean_cosine_square(lambda v: math.sqrt(1 - c2 * v * v))
        for step in (0.002, 0.006):
            constraints = constraints_of(system, masses, x)
            rng = torch.Generator().manual_seed(3)
            walkers = BatchedLangevin(nothing, x, masses, KT, step, 5.0, rng, constraints)
            frames = []
            for _ in range(6):
                walkers.run(round(0.25 / step))
                frames.append(walkers.frames().double())
            check_trimer(torch.cat(frames[2:]), system, expected, n)
            kinetic = (walkers.velocities.double().square() * torch.tensor(masses)[None, :, None]).sum((0, 1)) / KT
            # Seven of nine directions are left to move in.
            assert float(kinetic.mean()) == pytest.approx(7, abs=4 * math.sqrt(14 / n))

    def test_parallel_tempering(self):
        """A chain of four atoms with soft angles against quadrature: with the weights, and what they make good for."""
        molecule = chain()
        run = parallel_tempering(
            molecule,
            CompiledPotential(molecule, compile=False),
            n_steps=1200,
            n_replicas=2,
            t_max=450,
            n_walkers=400,
            time_step=2.0,
            friction=5.0,
            exchange_interval=50,
            save_interval=100,
        )
        ensemble = run.ensemble
        assert np.abs(molecule.constraints.errors(ensemble.positions)).max() < 2e-6
        cosine = cosine_square(torch.as_tensor(ensemble.positions[:, :3]).double()).numpy()
        # 400 independent ladders; within each, frames are alike.
        error = per_walker_error(cosine, ensemble.groups)
        assert float(ensemble.weights @ cosine) == pytest.approx(chain_mean(metric=False), abs=4 * error)
        assert cosine.mean() == pytest.approx(chain_mean(metric=True), abs=4 * error)
        assert chain_mean(metric=False) - chain_mean(metric=True) > 4 * error
        assert run.mass_metric > 0.05
        assert "mass metric" in run.report()

    def test_generator_and_sampler_agree(self):
        """The target of the generator is what the weighted frames of dynamics are samples of."""
        molecule = chain()
        generator = BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False))
        assert generator.coordinates.dimension == 3
        ensemble = generator.sample(40_000)
        # Angles have bounds, which are part of the domain.
        angles = [row for row in generator.coordinates.rows if row.kind == "angle"]
        bounds = [(row.centre - row.limit, row.centre + row.limit) for row in angles]
        integrals = [quad(chain_weight, *pair)[0] for pair in bounds]
        exact = math.log(2 * math.pi * math.prod(integrals)) + 6 * math.log(0.15)
        assert ensemble.log_z.value == pytest.approx(exact, abs=2 * ensemble.log_z.half_width)
        cosine = cosine_square(torch.as_tensor(ensemble.positions[:, :3]).double()).numpy()
        error = cosine.std() / math.sqrt(len(ensemble) * ensemble.ess_fraction)
        first = next(k for k, row in enumerate(angles) if set(row.atoms) == {0, 1, 2})
        mean = quad(lambda t: chain_weight(t) * math.cos(t) ** 2, *bounds[first])[0] / integrals[first]
        assert float(ensemble.weights @ cosine) == pytest.approx(mean, abs=4 * error)

    def test_tempering_by_openmmtools(self):
        molecule = chain()
        run = openmmtools_tempering(
            molecule, n_iterations=20, steps_per_iteration=10, n_replicas=2, n_blocks=4, platform="Reference"
        )
        frames = torch.as_tensor(run.ensemble.positions)
        assert np.abs(molecule.constraints.errors(run.ensemble.positions)).max() < 1e-5
        assert np.allclose(run.ensemble.log_weights, -log_mass_metric(molecule, frames).numpy(), atol=1e-6)
        assert run.mass_metric > 0

    def test_a_step_that_is_too_long_says_so(self):
        molecule = chain()
        with pytest.raises(PotentialError, match="time step"):
            parallel_tempering(
                molecule,
                CompiledPotential(molecule, compile=False),
                n_steps=200,
                n_replicas=1,
                n_walkers=16,
                time_step=200.0,
            )

    def test_a_constrained_atom_without_mass_is_named(self):
        system = openmm.System()
        system.addParticle(0)
        system.addParticle(1)
        system.addConstraint(0, 1, 0.1)
        with pytest.raises(PotentialError, match="atom 0 is constrained but has no mass"):
            log_mass_metric(system, torch.zeros(1, 2, 3))


class TestProcesses:
    def test_moves_of_free_atoms_refuse_constraints(self, generator):
        for process in (annealed_importance, flow_chains):
            with pytest.raises(PotentialError, match="constrained bonds"):
                process(generator)


class TestData:
    def test_frames_of_constrained_dynamics(self):
        molecule = chain()
        x, _ = BoltzmannGenerator.for_molecule(molecule).sample_and_log_prob(100)
        frames = x.numpy()
        ensemble = constrained_frames(molecule, SimpleNamespace(xyz=frames))
        assert np.allclose(ensemble.log_weights, -log_mass_metric(molecule, x).numpy())
        far = frames.copy()
        far[3] *= 1.05
        with pytest.raises(StructureError, match="1 of 100 frames"):
            constrained_frames(molecule, far)
        with pytest.raises(StructureError, match="shape"):
            constrained_frames(molecule, frames[:, :3])

    def test_pretraining_weights_what_comes_without_weights(self):
        """Frames of dynamics and the same frames with their weights train alike; equal weights train something else."""
        molecule = chain()
        x, _ = BoltzmannGenerator.for_molecule(molecule).sample_and_log_prob(200)
        weighted = constrained_frames(molecule, x.numpy())
        plain = bg.Ensemble(x.numpy(), np.zeros(200), kT=molecule.kT, molecule=molecule)
        held_out, events = [], []
        for data in (x, weighted, plain):
            generator = BoltzmannGenerator.for_molecule(molecule, seed=0)
            history = pretrain(generator, data, n_steps=2, validation=0.5)
            held_out.append(history.records[-1]["held_out"])
            events.append([event.message for event in history.events if event.kind == "weights"])
        assert held_out[0] == pytest.approx(held_out[1], abs=1e-5)
        assert abs(held_out[2] - held_out[1]) > 1e-3
        assert "weighted by the mass metric" in events[0][0]
        assert "3 constraints" in events[0][0]
        assert events[1] == []
        assert "weights of the Ensemble are equal" in events[2][0]
        size = float(log_mass_metric(molecule, x).std(correction=0))
        assert all(f"vary by {size:.2g}" in event for event in (events[0][0], events[2][0]))


def trimer_coupling(masses) -> float:
    """c^2 in the determinant 1 - c^2 cos^2 theta of the scaled Z of three atoms in a row."""
    first, middle, last = (1 / mass for mass in masses)
    return middle**2 / ((first + middle) * (middle + last))


def mean_cosine_square(density) -> float:
    return quad(lambda v: v * v * density(v), -1, 1)[0] / quad(density, -1, 1)[0]


def cosine_square(x: torch.Tensor) -> torch.Tensor:
    """cos^2 of the angle at the second of three atoms, (B,)."""
    u, v = (torch.nn.functional.normalize(x[:, k] - x[:, 1], dim=1) for k in (0, 2))
    return (u * v).sum(1).square()


def check_trimer(x: torch.Tensor, system: openmm.System, expected: float, n: int) -> None:
    """<cos^2> of frames (n_frames * n, 3, 3) of n independent trimers, plain and weighted."""
    cosine = cosine_square(x).numpy()
    weights = np.exp(-log_mass_metric(system, x).numpy())
    groups = np.tile(np.arange(n), len(x) // n)
    assert cosine.mean() == pytest.approx(expected, abs=4 * per_walker_error(cosine, groups))
    # The weights are within a factor of two of each other, so their errors are those of the plain mean.
    assert weights @ cosine / weights.sum() == pytest.approx(1 / 3, abs=5 * per_walker_error(cosine, groups))


def per_walker_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a mean over independent groups of equal size."""
    means = np.array([values[groups == g].mean() for g in np.unique(groups)])
    return float(means.std(ddof=1) / math.sqrt(len(means)))
