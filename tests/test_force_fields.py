"""Whole force fields and test systems against OpenMM's Reference platform; single precision; other devices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import unit

from boltzgen.energy import CompiledPotential, OpenMMPotential, potential
from boltzgen.energy.explanation import worst_contributions
from boltzgen.energy.program import TermProgram
from boltzgen.energy.read import read_system
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.errors import PotentialError
from boltzgen.molecule import Molecule

DATA = Path(__file__).parent / "data"
DIPEPTIDE = Path(__file__).resolve().parents[1] / "systems" / "alanine_dipeptide.pdb"
AMINO_ACIDS = sorted(path.stem for path in (DATA / "capped").glob("*.pdb"))
FORCE_FIELDS = ("charmm36m", "amber14", "amber19")
SOLVENTS = ("hct", "obc1", "obc2", "gbn", "gbn2")
# All systems of openmmtools without a box and of at most 500 particles.
TEST_SYSTEMS = [
    *("CustomExternalForcesTestSystem", "HarmonicOscillator", "PowerOscillator", "Diatom"),
    *("ConstraintCoupledHarmonicOscillator", "HarmonicOscillatorArray", "LennardJonesPair", "LennardJonesCluster"),
    *("WaterCluster", "AlanineDipeptideVacuum", "AlanineDipeptideImplicit", "TolueneVacuum", "TolueneImplicit"),
    *(f"TolueneImplicit{solvent}" for solvent in ("HCT", "OBC1", "OBC2", "GBn", "GBn2")),
    *("HostGuestVacuum", "HostGuestImplicit"),
    *(f"HostGuestImplicit{solvent}" for solvent in ("HCT", "OBC1", "OBC2", "GBn", "GBn2")),
]


def openmmtools_system(name):
    testsystems = pytest.importorskip("openmmtools.testsystems")
    options = {}
    if name.startswith(("AlanineDipeptide", "Toluene", "HostGuest")):
        options["constraints"] = None
    if name == "WaterCluster":
        options["constrained"] = False
    return getattr(testsystems, name)(**options)


def assert_agrees(molecule, n_frames=4):
    """Terms to 1e-6 kJ/mol and ten digits of the largest, forces to 1e-6 of the largest."""
    frames = perturbed_frames(molecule.positions, n_frames, seed=3)
    expected, expected_forces = reference_terms(molecule.system, frames)
    compiled = CompiledPotential(molecule, compile=False, verify=False)
    terms = compiled.terms(torch.from_numpy(frames))
    assert set(terms) == set(expected) - {"CMMotionRemover"}
    for name, value in terms.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-10, atol=1e-6, err_msg=name)
    energy, forces = compiled.energy_and_forces(torch.from_numpy(frames))
    np.testing.assert_allclose(energy.numpy(), sum(expected.values()), rtol=1e-10, atol=1e-6)
    scale = np.maximum(np.abs(expected_forces).max(axis=(1, 2), keepdims=True), 1e-3)
    assert np.abs((forces.numpy() - expected_forces) / scale).max() < 1e-6
    return compiled, terms


@pytest.mark.parametrize("name", TEST_SYSTEMS)
def test_systems_of_openmmtools(name):
    _, terms = assert_agrees(openmmtools_system(name))
    assert all(bool((value != 0).any()) for value in terms.values())


@pytest.mark.parametrize(
    ("name", "constraints", "reason"),
    [
        ("CustomGBForceSystem", False, "NonbondedForce uses periodic boundary conditions"),
        ("AlchemicalAlanineDipeptide", False, "CustomNonbondedForce has interaction groups"),
        ("AlchemicalAlanineDipeptide", True, "12 constraints"),
    ],
)
def test_systems_of_openmmtools_that_are_left_to_openmm(name, constraints, reason):
    source = openmmtools_system(name)
    if not constraints:
        for index in reversed(range(source.system.getNumConstraints())):
            source.system.removeConstraint(index)
    with pytest.raises(PotentialError, match=reason):
        CompiledPotential(source)
    found = potential(source)
    assert isinstance(found, OpenMMPotential)
    assert reason in found.fallback_reason


@pytest.fixture(scope="module")
def dipeptides():
    """Alanine dipeptide by force field and solvent, each built once."""
    built = {}

    def get(forcefield, solvent):
        if (forcefield, solvent) not in built:
            # CHARMM36m with implicit solvent warns that the two were not made for each other.
            built[forcefield, solvent] = Molecule.from_pdb(DIPEPTIDE, forcefield=forcefield, solvent=solvent)
        return built[forcefield, solvent]

    return get


@pytest.mark.parametrize("solvent", [None, *SOLVENTS])
@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
def test_force_fields_with_implicit_solvents(dipeptides, forcefield, solvent):
    molecule = dipeptides(forcefield, solvent)
    _, terms = assert_agrees(molecule)
    assert any(name.startswith(("CustomGBForce", "GBSAOBCForce")) for name in terms) == (solvent is not None)


@pytest.mark.parametrize("name", AMINO_ACIDS)
def test_amino_acids_with_charmm36m(name):
    _, terms = assert_agrees(Molecule.from_pdb(DATA / "capped" / f"{name}.pdb"))
    assert {"HarmonicBondForce", "CMAPTorsionForce", "CustomTorsionForce", "NonbondedForce"} <= set(terms)


def absolute_contributions(system, x):
    """Sum of the absolute contributions to each force, {name: (B,) array in kJ/mol}."""
    result = {}
    for name, tables in read_system(system).items():
        program = TermProgram(tables, system.getNumParticles()).double()
        rows = []
        for row in x.double():
            parts = worst_contributions(program, row.T[:, :, None].contiguous(), str, 10**9)
            rows.append(sum(abs(part.energy) for part in parts))
        result[name] = np.array(rows)
    return result


SINGLE = [
    *(("dipeptide", forcefield, solvent) for forcefield in FORCE_FIELDS for solvent in (None, "obc2", "gbn2")),
    ("dipeptide", "charmm36m", "hct"),
    ("capped/TRP", "charmm36m", None),
    ("chignolin", "charmm36m", None),
    ("chignolin", "charmm36m", "obc2"),
]


@pytest.mark.parametrize(("structure", "forcefield", "solvent"), SINGLE)
def test_single_precision(dipeptides, structure, forcefield, solvent):
    """Each term to 1e-5 of the sum of its absolute contributions; the total to 0.02 kJ/mol."""
    if structure == "dipeptide":
        molecule = dipeptides(forcefield, solvent)
    else:
        molecule = Molecule.from_pdb(DATA / f"{structure}.pdb", forcefield=forcefield, solvent=solvent)
    x = torch.from_numpy(single_precision_frames(molecule, 4 if structure == "chignolin" else 12)).float()
    compiled = CompiledPotential(molecule, compile=False)
    single, double = compiled.terms(x), compiled.terms(x.double())
    total, exact = compiled(x).double(), compiled(x.double())
    plausible = exact < 1e4
    assert int(plausible.sum()) >= len(x) // 2
    scale = absolute_contributions(molecule.system, x)
    for name, value in single.items():
        error = (value.double() - double[name]).abs().numpy() / np.maximum(scale[name], 1e-6)
        assert error[plausible].max() <= 1e-5, name
    assert float((total - exact).abs()[plausible].max()) <= 0.02


def single_precision_frames(molecule, n_frames):
    """Frames moved by so little that the energy stays below 1e4 kJ/mol, whatever the size, and a few beyond."""
    random = np.random.default_rng(4)
    base = np.array(molecule.positions.value_in_unit(unit.nanometer))
    return base + random.normal(size=(n_frames, *base.shape)) * np.linspace(0.002, 0.012, n_frames)[:, None, None]


@pytest.mark.parametrize(
    ("forcefield", "solvent"), [("charmm36m", None), ("charmm36m", "gbn2"), ("amber19", "gbn"), ("amber14", "hct")]
)
def test_gradcheck(dipeptides, forcefield, solvent):
    molecule = dipeptides(forcefield, solvent)
    compiled = CompiledPotential(molecule, compile=False, verify=False)
    x = torch.from_numpy(perturbed_frames(molecule.positions, 1, seed=2)).requires_grad_()
    # Energies of 1e3 kJ/mol leave about 1e-7 of rounding in a difference quotient with steps of 1e-6 nm.
    assert torch.autograd.gradcheck(compiled, (x,), eps=1e-6, atol=1e-2, rtol=1e-5)


@pytest.mark.parametrize(("forcefield", "solvent"), [("charmm36m", None), ("charmm36m", "obc2"), ("amber19", "gbn2")])
def test_another_device(dipeptides, forcefield, solvent, request):
    device = request.config.getoption("--device")
    if device == "cpu":
        pytest.skip("runs with --device, such as --device cuda")
    molecule = dipeptides(forcefield, solvent)
    frames = perturbed_frames(molecule.positions, 16, seed=5)
    expected, expected_forces = reference_terms(molecule.system, frames)
    exact = sum(expected.values())
    x = torch.from_numpy(frames)
    scale = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    for compiled in (CompiledPotential(molecule, compile=False), CompiledPotential(molecule, device, compile=False)):
        # Positions on the device, then on the CPU with the device named.
        there = x if compiled.device is not None else x.to(device)
        energy, forces = compiled.energy_and_forces(there)
        assert (energy.device, forces.device) == (there.device, there.device)
        np.testing.assert_allclose(energy.cpu().numpy(), exact, rtol=1e-10, atol=1e-6)
        assert np.abs((forces.cpu().numpy() - expected_forces) / scale).max() < 1e-6
        single = compiled(there.float()).double().cpu().numpy()
        plausible = exact < 1e4
        assert np.abs(single - compiled(there.float().double()).cpu().numpy())[plausible].max() <= 0.02
