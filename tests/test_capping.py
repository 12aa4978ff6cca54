"""Energies capped by term: bounds on the force of every term, exactness below, monotonic walls, what is refused."""

import functools
import itertools
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from boltzgen.energy import CompiledPotential
from boltzgen.errors import PotentialError
from boltzgen.molecule import Molecule

DIPEPTIDE = Path(__file__).resolve().parents[1] / "systems" / "alanine_dipeptide.pdb"
LIMIT = 1e5  # kJ/mol/nm: a stretch of 0.03 nm by 3e5 kJ/mol/nm^2 gives 1e4


def chain(n_atoms=6, exponent=12):
    """Atoms with custom stretches (a Morse and a cubic one) and custom pairs, repulsion and Coulomb apart."""
    system = openmm.System()
    bond = openmm.CustomBondForce("d*(1-exp(-a*(r-r0)))^2")
    cubic = openmm.CustomBondForce("1e4*(r-0.15)^2*(1-2*(r-0.15))")
    pairs = openmm.CustomNonbondedForce(f"4*0.3*((0.25/r)^{exponent}-(0.25/r)^6) + w1*w2/r")
    coulomb = openmm.NonbondedForce()
    external = openmm.CustomExternalForce("x^2")
    for name in ("d", "a", "r0"):
        bond.addPerBondParameter(name)
    pairs.addPerParticleParameter("w")
    for atom in range(n_atoms):
        system.addParticle(12.0)
        pairs.addParticle([0.5])
        coulomb.addParticle(0.6 * (-1) ** atom, 0.1, 0.0)
        external.addParticle(atom)
    for atom in range(n_atoms - 1):
        (bond if atom % 2 else cubic).addBond(atom, atom + 1, *([[400.0, 20.0, 0.15]] if atom % 2 else []))
        pairs.addExclusion(atom, atom + 1)
        coulomb.addException(atom, atom + 1, 0.0, 0.1, 0.0)
    for force in (bond, cubic, pairs, coulomb, external):
        system.addForce(force)
    grid = np.arange(n_atoms)[:, None] * np.array([0.12, 0.0, 0.0])
    return system, grid + np.array([[0.0, 0.09 * (k % 2), 0.02 * k] for k in range(n_atoms)])


@functools.cache
def case(name):
    """Compiled potential and a structure (N, 3) in nm."""
    if name == "custom":
        system, positions = chain()
        return CompiledPotential(system, compile=False, verify=False), positions
    forcefield, _, solvent = name.partition(" ")
    molecule = Molecule.from_pdb(DIPEPTIDE, forcefield=forcefield, solvent=solvent or None)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    return CompiledPotential(molecule, compile=False, verify=False), positions


def thermal(positions, n, seed=0):
    """Frames (n, N, 3) moved by 0.005 nm, as at room temperature, around the origin."""
    random = np.random.default_rng(seed)
    return positions - positions.mean(0) + random.normal(scale=0.005, size=(n, *positions.shape))


def strange_frames(positions, n=4, seed=0):
    """{name: (n, N, 3)}: frames that an untrained generator may make, and degenerate ones."""
    random = np.random.default_rng(seed)
    frames = thermal(positions, n, seed)
    found = {"thermal": frames, "moved": frames + random.normal(scale=0.1, size=frames.shape)}
    found |= {f"scaled by {scale:g}": scale * frames for scale in (0.1, 0.01, 1e-4, 10, 1000)}
    found["blob"] = random.normal(scale=0.05, size=frames.shape)
    found["flat"] = frames * np.array([1, 1, 0])
    found["nearly a line"] = frames * np.array([1, 1e-6, 1e-6])
    for name, distance in (("close", 1e-4), ("coincident", 0.0)):
        found[name] = frames.copy()
        for row in found[name]:
            first, second = random.permutation(len(row))[:2]
            direction = random.normal(size=3)
            row[first] = row[second] + distance * direction / np.linalg.norm(direction)
    return found


def largest_force_by_term(capped, frames, dtype):
    """Largest force of any one interaction on any one atom, {kind: kJ/mol/nm}, over all frames."""
    x = torch.tensor(frames, dtype=dtype).permute(2, 1, 0).contiguous().requires_grad_()
    found = {}
    for kind, energies in capped._module(x).interactions(x).items():
        if kind.startswith("generalized Born") or len(energies) == 0:
            continue
        if kind == "pairs":  # all N x N, each pair with half its energy in two places
            square = energies.unflatten(0, (len(frames[0]), -1))
            energies = torch.stack([2 * square[i, j] for i, j in itertools.combinations(range(len(square)), 2)])
        gradients = [torch.autograd.grad(energy.sum(), x, retain_graph=True)[0] for energy in energies]
        found[kind] = max(float(gradient.norm(dim=0).max()) for gradient in gradients)
    return found


# Rounding of float32 in the force of a term, a few dozen operations.
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["charmm36m", "amber14", "custom"])
def test_no_term_pulls_an_atom_harder(name, dtype, slack):
    potential, positions = case(name)
    capped = potential.capped(LIMIT)
    everything = np.concatenate(list(strange_frames(positions).values()))
    found = largest_force_by_term(capped, everything, dtype)
    uncapped = {"custom 3"} if name == "custom" else set()  # the external force, which the report names
    assert {"bonds", "pairs"} <= set(found) or name == "custom"
    for kind in set(found) - uncapped:
        assert found[kind] <= LIMIT * (1 + slack), kind
    # The walls are reached, so the bound is not met for want of trying.
    assert found["pairs"] > 0.99 * LIMIT
    energy, forces = capped.energy_and_forces(torch.tensor(everything, dtype=dtype))
    assert torch.isfinite(energy).all()
    assert (forces.abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("name", ["charmm36m", "amber14", "custom", "charmm36m obc2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_for_thermal_frames(name, dtype):
    potential, positions = case(name)
    frames = torch.tensor(thermal(positions, 200, seed=1), dtype=dtype)
    raw, capped = potential(frames.double()), potential.capped(LIMIT)(frames).double()
    tolerance = 1e-8 if dtype == torch.float64 else 0.02
    # All of them: 0.005 nm bring no term of these molecules near 1e5 kJ/mol/nm.
    assert float(((raw - capped).abs() <= tolerance).double().mean()) == 1.0


def test_share_of_frames_left_exact_falls_with_the_threshold():
    potential, positions = case("charmm36m")
    frames = torch.tensor(positions + np.random.default_rng(2).normal(scale=0.02, size=(300, *positions.shape)))
    raw = potential(frames)
    exact = [(potential.capped(limit)(frames) - raw).abs() <= 1e-6 for limit in (1e7, 1e5, 2e4)]
    assert bool(exact[0].all())
    assert bool((exact[1] | ~exact[2]).all())
    assert float(exact[2].double().mean()) < float(exact[1].double().mean())


@pytest.mark.parametrize("name", ["charmm36m", "amber14", "custom"])
def test_pair_energy_rises_inward_of_the_cap(name):
    potential, _ = case(name)
    terms = potential.capped(LIMIT)._terms
    with torch.no_grad():
        slope = terms._radial(torch.tensor([0.02], dtype=torch.float64))[1][..., 0]
        repulsive = slope < 0
        r = torch.linspace(0.0, 0.3, 3001, dtype=torch.float64)
        energies = torch.cat([terms.pair_line(lambda x: terms._radial(x)[0], part) for part in r.split(100)], -1)
    assert int(repulsive.sum()) > 10
    inside = r[1:] <= terms.pair_line.shortest
    falls = torch.diff(energies, dim=-1) < 0
    assert bool((falls | ~inside)[repulsive].all())
    # Where there is no Lennard-Jones nothing repels opposite charges: a line down, no steeper than the threshold.
    steepness = torch.diff(energies, dim=-1).abs() / torch.diff(r)
    assert float(steepness.max()) <= LIMIT * (1 + 1e-6)


@pytest.mark.parametrize("name", ["charmm36m", "amber14", "custom", "charmm36m obc2"])
def test_capped_forces_are_derivatives(name):
    potential, positions = case(name)
    capped = potential.capped(2e4)
    frames = strange_frames(positions, n=1)
    chosen = ("thermal", "moved", "scaled by 0.1", "blob")
    if name.endswith("obc2"):
        chosen = chosen[:2]  # uncapped, so that overlaps have forces beyond any difference quotient
    x = torch.from_numpy(np.concatenate([frames[key] for key in chosen])).requires_grad_()
    # Energies of 1e5 kJ/mol leave about 1e-5 of rounding in a difference quotient with steps of 1e-6 nm, and slopes of
    # bends differ within a step where arms are short.
    assert torch.autograd.gradcheck(capped, (x,), eps=1e-6, atol=1.0, rtol=1e-4)


def test_threshold_below_an_attraction_is_refused_with_the_pair():
    potential, _ = case("charmm36m")
    with pytest.raises(PotentialError, match=r"attraction of \w+:\w+ and \w+:\w+.*choose more than \d+") as refused:
        potential.capped(500.0)
    enough = float(str(refused.value).rsplit(" ", 1)[1])
    potential.capped(enough + 1)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(PotentialError, match="must be positive"):
            potential.capped(wrong)


def test_threshold_below_the_pull_of_a_custom_stretch_is_refused():
    """A Morse stretch pulls with at most d a / 2 = 4000 kJ/mol/nm, where no line could go on."""
    potential, _ = case("custom")
    with pytest.raises(PotentialError, match=r"attraction of atom \d and atom \d"):
        potential.capped(3900.0)
    potential.capped(4100.0)


def test_what_stays_uncapped_is_said():
    potential, positions = case("charmm36m obc2")
    capped = potential.capped(LIMIT)
    assert "generalized Born" in capped.report()
    frames = torch.tensor(thermal(positions, 5))
    raw = potential.terms(frames)
    solvent = next(value for name, value in raw.items() if name.startswith("CustomGB"))
    torch.testing.assert_close(capped.terms(frames)["generalized Born 1"], solvent, rtol=1e-12, atol=1e-9)
    assert "Not capped" not in case("charmm36m")[0].capped(LIMIT).report()
    assert "'x^2'" in case("custom")[0].capped(LIMIT).report()


def test_terms_add_up_and_batches_are_independent():
    potential, positions = case("charmm36m")
    capped = potential.capped(LIMIT)
    frames = torch.tensor(np.concatenate(list(strange_frames(positions).values())))
    energy = capped(frames)
    torch.testing.assert_close(sum(capped.terms(frames).values()), energy, rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(torch.cat([capped(frame[None]) for frame in frames]), energy, rtol=1e-12, atol=1e-6)
    assert capped(frames[:0]).shape == (0,)


def test_excluded_custom_pairs_on_one_spot_leave_a_gradient():
    """In float32 the power that is not counted overflows; its gradient must not become NaN."""
    system, positions = chain(exponent=12.5)
    capped = CompiledPotential(system, compile=False, verify=False).capped(LIMIT)
    x = torch.tensor(positions, dtype=torch.float32)[None].clone()
    x[0, 1] = x[0, 0] + 1e-5
    energy, forces = capped.energy_and_forces(x)
    assert torch.isfinite(energy).all()
    assert float(forces.abs().max()) > 0


def test_terms_without_geometry_and_empty_systems():
    system = openmm.System()
    for _ in range(3):
        system.addParticle(1.0)
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    assert torch.equal(CompiledPotential(system, verify=False).capped(LIMIT)(x), torch.zeros(4, dtype=x.dtype))
    bond = openmm.CustomBondForce("2.5")
    bond.addBond(0, 1)
    bond.addBond(1, 2)
    system.addForce(bond)
    torch.testing.assert_close(CompiledPotential(system, verify=False).capped(LIMIT)(x), torch.full((4,), 5.0).double())
