"""Energies against OpenMM's Reference platform, derivatives, bad samples."""

from __future__ import annotations

import copy
import re
import types

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

import boltzgen.energy as energy
from boltzgen.energy.contexts import ContextEvaluator
from boltzgen.energy.fingerprint import fingerprint
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.errors import PotentialError

SINGLE = torch.float32


def _dipeptide(forcefield: str, one_residue: bool) -> types.SimpleNamespace:
    """ACE-ALA-NME, every term free of constraints; CHARMM36m keeps its impropers only as one residue."""
    testsystems = pytest.importorskip("openmmtools.testsystems")
    source = testsystems.AlanineDipeptideVacuum(constraints=None)
    topology = source.topology
    if one_residue:
        topology = app.Topology()
        residue = topology.addResidue("ALAD", topology.addChain())
        atoms = [topology.addAtom(f"X{a.index}", a.element, residue) for a in source.topology.atoms()]
        for bond in source.topology.bonds():
            topology.addBond(atoms[bond[0].index], atoms[bond[1].index])
    system = app.ForceField(forcefield).createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None)
    return types.SimpleNamespace(system=system, positions=source.positions, topology=topology, n_atoms=22)


@pytest.fixture(scope="module")
def charmm() -> types.SimpleNamespace:
    return _dipeptide("charmm36_2024.xml", one_residue=True)


@pytest.fixture(scope="module")
def amber() -> types.SimpleNamespace:
    return _dipeptide("amber14-all.xml", one_residue=False)


@pytest.fixture(scope="module")
def compiled(charmm: types.SimpleNamespace) -> energy.CompiledPotential:
    return energy.CompiledPotential(charmm, compile=False)


def _frames(molecule: types.SimpleNamespace, n: int, seed: int = 1) -> np.ndarray:
    return perturbed_frames(molecule.positions, n, seed)


@pytest.mark.parametrize("which", ["charmm", "amber"])
def test_each_term_agrees_with_openmm_reference(which: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(which)
    frames = _frames(molecule, 100)
    expected, forces = reference_terms(molecule.system, frames)
    potential = energy.CompiledPotential(molecule, compile=False)
    terms = potential.terms(torch.from_numpy(frames))
    assert set(terms) == set(expected) - {"CMMotionRemover"}
    for name, value in terms.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-11, atol=1e-6, err_msg=name)
    total, found = potential.energy_and_forces(torch.from_numpy(frames))
    np.testing.assert_allclose(total.numpy(), sum(expected.values()), rtol=1e-11, atol=1e-6)
    largest = np.abs(forces).max(axis=(1, 2), keepdims=True)
    assert np.max(np.abs(found.numpy() - forces) / largest) < 1e-9


def test_charmm_has_every_term(compiled: energy.CompiledPotential, charmm: types.SimpleNamespace) -> None:
    terms = compiled.terms(torch.from_numpy(_frames(charmm, 2)))
    assert {"CMAPTorsionForce", "CustomTorsionForce", "CustomNonbondedForce", "CustomBondForce"} <= set(terms)
    assert all(bool((value != 0).all()) for value in terms.values())


@pytest.mark.parametrize("which", ["charmm", "amber"])
def test_single_precision_of_plausible_configurations(which: str, request: pytest.FixtureRequest) -> None:
    molecule = request.getfixturevalue(which)
    potential = energy.CompiledPotential(molecule, compile=False)
    frames = torch.from_numpy(_frames(molecule, 400)).to(SINGLE)
    exact = potential(frames.double())
    plausible = exact < 1e4
    assert int(plausible.sum()) > 200
    assert float((potential(frames).double() - exact)[plausible].abs().max()) <= 0.02


def test_gradcheck(compiled: energy.CompiledPotential, charmm: types.SimpleNamespace) -> None:
    x = torch.from_numpy(_frames(charmm, 2)).requires_grad_()
    # Energies of 1e3 kJ/mol leave about 1e-7 of rounding in a difference quotient with steps of 1e-6 nm.
    assert torch.autograd.gradcheck(compiled, (x,), eps=1e-6, atol=1e-2, rtol=1e-5)


@pytest.mark.slow
def test_torch_compile_gives_the_same(charmm: types.SimpleNamespace) -> None:
    potential = energy.CompiledPotential(charmm, compile=True, chunk=64)
    eager = energy.CompiledPotential(charmm, compile=False)
    for size in (1, 64, 150):
        x = torch.from_numpy(_frames(charmm, size)).to(SINGLE)
        e, f = potential.energy_and_forces(x)
        e0, f0 = eager.energy_and_forces(x)
        torch.testing.assert_close(e, e0, rtol=1e-5, atol=1e-2)
        torch.testing.assert_close(f, f0, rtol=1e-4, atol=1e-3 * float(f0.abs().max()))


def test_compiler_missing_means_eager_with_a_reason(
    charmm: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        def call(*inner: object) -> object:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    potential = energy.CompiledPotential(charmm, compile=True)
    x = torch.from_numpy(_frames(charmm, 3))
    assert torch.isfinite(potential(x)).all()
    assert "no C++ compiler" in potential.compile_reason
    assert "no C++ compiler" in potential.report()


def _both(molecule: types.SimpleNamespace) -> list[energy.CompiledPotential | energy.OpenMMPotential]:
    return [
        energy.CompiledPotential(molecule, compile=False),
        energy.OpenMMPotential(molecule, platform="Reference"),
        energy.OpenMMPotential(molecule, platform="CPU"),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_samples_stay_apart(charmm: types.SimpleNamespace, dtype: torch.dtype) -> None:
    good = torch.from_numpy(_frames(charmm, 6)).to(dtype)
    bad = good.clone()
    bad[1, 3, 0] = torch.nan
    bad[2, 5] = bad[2, 15]  # coincident
    bad[4, 7, 1] = torch.inf
    for potential in _both(charmm):
        expected = potential(good)
        before = copy.deepcopy(potential.counts)
        x = bad.clone().requires_grad_()
        found = potential(x)
        counts = potential.counts
        assert (counts.infinite, counts.lost, counts.defect) == (before.infinite + 1, before.lost, before.defect + 2)
        assert (counts.energy, counts.force) == (before.energy + 6, before.force + 6)
        fine = [0, 3, 5]
        # The CPU platform of OpenMM does not add up its threads in a fixed order.
        torch.testing.assert_close(found[fine], expected[fine], rtol=1e-5, atol=1e-3)
        assert found[[1, 4]].isnan().all()
        assert found[2] == torch.inf
        found[fine].sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert (x.grad[[1, 2, 4]] == 0).all()
        assert (x.grad[fine].abs().amax(dim=(1, 2)) > 0).all()
        codes = potential.status(bad)
        assert codes.tolist() == [0, 3, 1, 0, 3, 0]


def test_overflow_of_single_precision_is_infinite_not_nan(
    compiled: energy.CompiledPotential, charmm: types.SimpleNamespace
) -> None:
    x = torch.from_numpy(_frames(charmm, 40)).to(SINGLE)
    for row, distance in enumerate(np.geomspace(1e-9, 1e-2, 20)):
        x[row, 5] = x[row, 15] + torch.tensor([distance, 0.0, 0.0])
    for row, distance in enumerate(np.geomspace(1e2, 1e30, 20)):
        x[20 + row, 5, 2] = distance
    found, forces = compiled.energy_and_forces(x)
    assert not found.isnan().any()
    assert torch.isfinite(forces).all()
    assert (found[:5] == torch.inf).all()
    assert compiled.status(x).max() == energy.Status.INFINITE


def test_engine_failure_is_lost_after_one_retry(charmm: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = energy.OpenMMPotential(charmm, platform="Reference")
    x = torch.from_numpy(_frames(charmm, 3))
    expected = potential(x)
    true_call = ContextEvaluator._evaluate
    failures = {1: 1, 2: 2}

    def sometimes(self: ContextEvaluator, frame: np.ndarray, forces: bool) -> object:
        index = int(np.argmin([np.abs(frame - row).max() for row in x.numpy()]))
        if failures.get(index, 0) > 0:
            failures[index] -= 1
            raise openmm.OpenMMException("device lost")
        return true_call(self, frame, forces)

    monkeypatch.setattr(ContextEvaluator, "_evaluate", sometimes)
    found = potential(x)
    torch.testing.assert_close(found[:2], expected[:2])
    assert found[2].isnan()
    assert (potential.counts.lost, potential.counts.defect) == (1, 0)


def test_a_change_late_in_a_large_batch_is_seen(
    compiled: energy.CompiledPotential, charmm: types.SimpleNamespace
) -> None:
    x = torch.from_numpy(_frames(charmm, 4)).repeat(800, 1, 1)
    first = compiled(x)
    x[3001, 20, 2] += 1e-4
    second = compiled(x)
    changed = (first != second).nonzero().flatten().tolist()
    assert changed == [3001]


def test_chunks_and_empty_batches(charmm: types.SimpleNamespace) -> None:
    x = torch.from_numpy(_frames(charmm, 50))
    whole = energy.CompiledPotential(charmm, compile=False, chunk=1000)
    parts = energy.CompiledPotential(charmm, compile=False, chunk=7)
    torch.testing.assert_close(whole(x), parts(x), rtol=1e-13, atol=1e-10)
    assert whole(x[:0]).shape == (0,)
    assert whole.counts.energy == 50
    assert whole.counts.force == 0
    for strange in (x[:, :5], x[0], x.half(), x.numpy()):
        with pytest.raises(PotentialError):
            whole(strange)


def test_second_derivative_is_refused(compiled: energy.CompiledPotential, charmm: types.SimpleNamespace) -> None:
    x = torch.from_numpy(_frames(charmm, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x, create_graph=True)
    with pytest.raises(PotentialError, match="second derivatives"):
        gradient.square().sum().backward()
    weight = torch.ones(2, dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight * compiled(x)).sum(), x, create_graph=True)
    with pytest.raises(PotentialError, match="second derivatives"):
        gradient.square().sum().backward()


def test_energies_only_when_no_gradient_is_needed(charmm: types.SimpleNamespace) -> None:
    potential = energy.CompiledPotential(charmm, compile=False)
    x = torch.from_numpy(_frames(charmm, 3))
    potential(x)
    with torch.no_grad():
        potential(x.requires_grad_())
    assert potential.counts.force == 0
    potential(x).sum().backward()
    assert potential.counts.force == 3


def _with(system: openmm.System, force: openmm.Force) -> openmm.System:
    system = copy.deepcopy(system)
    system.addForce(force)
    return system


def _cut_off(system: openmm.System, method: int) -> openmm.System:
    system = copy.deepcopy(system)
    next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)).setNonbondedMethod(method)
    return system


def _tied(system: openmm.System) -> openmm.System:
    """With a rigid distance between atoms that no stretch joins."""
    system = copy.deepcopy(system)
    system.addConstraint(0, 21, 0.5)
    return system


def _with_virtual_site(system: openmm.System) -> openmm.System:
    system = copy.deepcopy(system)
    system.setParticleMass(0, 0)
    system.setVirtualSite(0, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))
    return system


def _over_all(force: openmm.Force, *parameters: object) -> openmm.Force:
    for _ in range(22):
        force.addParticle(*parameters)
    return force


def _interaction_group() -> openmm.Force:
    force = _over_all(openmm.CustomNonbondedForce("1/r"), [])
    force.addInteractionGroup([0, 1], [5, 6])
    return force


def _with_method(force: openmm.Force, method: int) -> openmm.Force:
    force.setNonbondedMethod(method)
    return force


def _computed_value() -> openmm.Force:
    force = _over_all(openmm.CustomNonbondedForce("v1*v2/r"), [])
    force.addComputedValue("v", "2")
    return force


def _custom_gb() -> openmm.Force:
    force = openmm.CustomGBForce()
    force.addComputedValue("I", "exp(-r)", openmm.CustomGBForce.ParticlePair)
    force.addEnergyTerm("I", openmm.CustomGBForce.SingleParticle)
    return force


def _centroid() -> openmm.Force:
    force = openmm.CustomCentroidBondForce(2, "distance(g1,g2)^2")
    force.addGroup([0, 1])
    force.addGroup([5, 6])
    force.addBond([0, 1], [])
    return force


def _collective_variable() -> openmm.Force:
    force = openmm.CustomCVForce("v^2")
    bond = openmm.CustomBondForce("r")
    bond.addBond(0, 1)
    force.addCollectiveVariable("v", bond)
    return force


def _external(text: str) -> openmm.Force:
    force = openmm.CustomExternalForce(text)
    force.addParticle(0)
    return force


def _many_particle() -> openmm.Force:
    return _over_all(openmm.CustomManyParticleForce(3, "distance(p1,p2)*distance(p2,p3)"), [], 0)


def _periodic_bond() -> openmm.Force:
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.1, 1.0)
    force.setUsesPeriodicBoundaryConditions(True)
    return force


_FORCES = {
    r"AndersenThermostat cannot": lambda: openmm.AndersenThermostat(300, 1),
    r"CustomCentroidBondForce cannot": _centroid,
    r"CustomManyParticleForce cannot": _many_particle,
    r"CustomCVForce cannot": _collective_variable,
    r"RMSDForce cannot": lambda: openmm.RMSDForce([[0, 0, i] for i in range(22)], list(range(22))),
    r"GayBerneForce cannot": lambda: _over_all(openmm.GayBerneForce(), 0.1, 1, -1, -1, 0.1, 0.1, 0.1, 1, 1, 1),
    r"CustomNonbondedForce has interaction groups": _interaction_group,
    r"CustomNonbondedForce has computed values": _computed_value,
    r"CustomNonbondedForce uses a cut-off": lambda: _with_method(
        _over_all(openmm.CustomNonbondedForce("1/r"), []), openmm.CustomNonbondedForce.CutoffNonPeriodic
    ),
    r"GBSAOBCForce uses a cut-off": lambda: _with_method(
        _over_all(openmm.GBSAOBCForce(), 0.1, 0.15, 0.8), openmm.GBSAOBCForce.CutoffNonPeriodic
    ),
    r"CustomGBForce uses a cut-off": lambda: _with_method(
        _over_all(_custom_gb(), []), openmm.CustomGBForce.CutoffNonPeriodic
    ),
    r"HarmonicBondForce \(2\) uses periodic": _periodic_bond,
    r"CustomExternalForce uses periodic": lambda: _external("periodicdistance(x,y,z,0,0,0)^2"),
    r"CustomExternalForce: (.|\n)*w": lambda: _external("x^2*w"),
    r"CustomExternalForce: (.|\n)*x\*\*2": lambda: _external("x**2"),
}
_SYSTEMS = {
    r"NonbondedForce uses a cut-off": lambda s: _cut_off(s, openmm.NonbondedForce.CutoffNonPeriodic),
    r"NonbondedForce uses (a cut-off or Ewald|periodic)": lambda s: _cut_off(s, openmm.NonbondedForce.PME),
    # OpenMM takes a barostat only where something is periodic.
    r"MonteCarloBarostat cannot": lambda s: _with(_with(s, openmm.MonteCarloBarostat(1, 300)), _periodic_bond()),
    r"1 constraints": _tied,
    r"virtual sites": _with_virtual_site,
}
# What OpenMM itself does not evaluate, so that there is nothing to fall back to.
_REFUSED_BY_OPENMM = (r"CustomExternalForce: (.|\n)*w", r"CustomExternalForce: (.|\n)*x\*\*2")


@pytest.mark.parametrize("reason", [*_FORCES, *_SYSTEMS])
def test_what_cannot_be_compiled_is_named_and_left_to_openmm(amber: types.SimpleNamespace, reason: str) -> None:
    system = _SYSTEMS[reason](amber.system) if reason in _SYSTEMS else _with(amber.system, _FORCES[reason]())
    molecule = types.SimpleNamespace(system=system, positions=amber.positions)
    with pytest.raises(PotentialError, match=reason):
        energy.CompiledPotential(molecule)
    if reason in _REFUSED_BY_OPENMM:
        return
    potential = energy.potential(molecule)
    assert isinstance(potential, energy.OpenMMPotential)
    assert re.search(reason, potential.fallback_reason)


def test_auto_compiles_what_it_can(amber: types.SimpleNamespace) -> None:
    assert isinstance(energy.potential(amber), energy.CompiledPotential)
    assert isinstance(energy.potential(amber), energy.Potential)
    with pytest.raises(PotentialError, match="backend"):
        energy.potential(amber, backend="gromacs")


def test_wrong_compilation_is_caught(amber: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import boltzgen.energy.compiled as module

    def wrong(system: openmm.System, *options: object) -> object:
        tables = energy_read(system, *options)
        tables["HarmonicAngleForce"].angle_parameters[3, 1] += 1e-4
        return tables

    energy_read = module.read_system
    monkeypatch.setattr(module, "read_system", wrong)
    with pytest.raises(PotentialError, match="HarmonicAngleForce"):
        energy.CompiledPotential(amber)


def test_openmm_platforms(charmm: types.SimpleNamespace) -> None:
    x = torch.from_numpy(_frames(charmm, 5))
    expected, forces = reference_terms(charmm.system, x.numpy())
    for platform in ("auto", "Reference", "CPU"):
        potential = energy.OpenMMPotential(charmm, platform=platform)
        found, found_forces = potential.energy_and_forces(x)
        exact = potential.platform == "Reference"
        np.testing.assert_allclose(
            found.numpy(), sum(expected.values()), rtol=1e-12 if exact else 1e-5, atol=1e-9 if exact else 1e-2
        )
        np.testing.assert_allclose(found_forces.numpy(), forces, rtol=1e-5, atol=1e-4 * np.abs(forces).max())
    for name, value in energy.OpenMMPotential(charmm, platform="Reference").terms(x).items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-12, atol=1e-9, err_msg=name)
    with pytest.raises(PotentialError, match="no platform 'TPU'"):
        energy.OpenMMPotential(charmm, platform="TPU")


def test_phases_and_periodicities() -> None:
    """Torsions with any phase, and periodicities beyond those that are polynomials in the cosine."""
    system = openmm.System()
    for _ in range(4):
        system.addParticle(12.0)
    torsion = openmm.PeriodicTorsionForce()
    for n in range(1, 13):
        torsion.addTorsion(0, 1, 2, 3, n, 0.3 * n + 0.1, 2.0)
        torsion.addTorsion(3, 2, 1, 0, n, 180 * unit.degree, 1.0)
    system.addForce(torsion)
    positions = [[0.1, 0.0, 0.1], [0, 0, 0], [0.15, 0, 0], [0.2, 0.1, 0]]
    potential = energy.CompiledPotential(types.SimpleNamespace(system=system, positions=positions), compile=False)
    frames = perturbed_frames(positions, 50, 3)
    expected, _ = reference_terms(system, frames)
    np.testing.assert_allclose(potential(torch.from_numpy(frames)), expected["PeriodicTorsionForce"], atol=1e-9)


def test_fingerprint_sees_parameters_but_not_the_order_of_terms() -> None:
    def system(order: list[int], k: float) -> openmm.System:
        result = openmm.System()
        for _ in range(4):
            result.addParticle(12.0)
        bond = openmm.HarmonicBondForce()
        for i in order:
            bond.addBond(*((i, i + 1) if order[0] else (i + 1, i)), 0.15, 10.0 * (i + 1))
        torsion = openmm.PeriodicTorsionForce()
        torsion.addTorsion(*((0, 1, 2, 3) if order[0] else (3, 2, 1, 0)), 3, 0.0, k)
        result.addForce(bond)
        result.addForce(torsion)
        return result

    first = fingerprint(system([0, 1, 2], 1.0))
    assert fingerprint(system([2, 0, 1], 1.0)) == first
    assert fingerprint(system([0, 1, 2], 1.0 + 1e-6)) != first
