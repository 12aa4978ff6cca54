"""Every class of force that can be compiled, with random parameters, against OpenMM's Reference platform."""

import copy
import itertools

import numpy as np
import openmm
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltzgen.energy import CompiledPotential
from boltzgen.energy.verify import reference_terms
from boltzgen.errors import PotentialError

N_ATOMS = 8
# Building two Contexts per example is what takes time; a seed draws a whole System.
examples = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)


def system_of(*forces, n_atoms=N_ATOMS):
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    for force in forces:
        system.addForce(copy.deepcopy(force))
    return system


def frames_of(random, n_frames=6, n_atoms=N_ATOMS, spacing=0.09):
    """Frames (n, N, 3) in nm in which no two atoms are closer than `spacing`, so that rounding stays small."""
    frames = []
    while len(frames) < n_frames:
        frame = random.normal(scale=0.25, size=(n_atoms, 3))
        apart = np.linalg.norm(frame[:, None] - frame[None], axis=2)[np.triu_indices(n_atoms, 1)]
        if apart.min(initial=np.inf) > spacing:
            frames.append(frame)
    return np.array(frames)


def assert_agrees(system, frames, force_tolerance=1e-6):
    """Terms to 1e-6 kJ/mol and ten digits, forces to 1e-6 of the largest, with and without gradients, in any batch."""
    expected, expected_forces = reference_terms(system, frames)
    potential = CompiledPotential(system, positions=frames[0], compile=False, verify=False)
    x = torch.from_numpy(frames)
    terms = potential.terms(x)
    assert set(terms) == set(expected) - {"CMMotionRemover"}
    for name, value in terms.items():
        assert value.shape == (len(frames),), name
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-10, atol=1e-6, err_msg=name)
    total = sum(expected.values(), np.zeros(len(frames)))
    energy, forces = potential.energy_and_forces(x)
    np.testing.assert_allclose(energy.numpy(), total, rtol=1e-10, atol=1e-6)
    np.testing.assert_allclose(potential(x).numpy(), total, rtol=1e-10, atol=1e-6)
    scale = np.maximum(np.abs(expected_forces).max(axis=(1, 2), keepdims=True), 1e-3)
    assert np.abs((forces.numpy() - expected_forces) / scale).max() <= force_tolerance
    for rows in (slice(0, 0), slice(1, 2)):
        some_energy, some_forces = potential.energy_and_forces(x[rows])
        torch.testing.assert_close(some_energy, energy[rows], rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(some_forces, forces[rows], rtol=1e-10, atol=1e-9 * float(scale.max()))
    return potential


def groups(random, size, most=8):
    """Random atoms of interactions: in any order, one of them twice and one also in reverse."""
    found = [tuple(int(a) for a in random.permutation(N_ATOMS)[:size]) for _ in range(random.integers(1, most))]
    return [*found, found[0], found[-1][::-1]]


def harmonic_bond(random):
    force = openmm.HarmonicBondForce()
    for pair in groups(random, 2):
        force.addBond(*pair, random.uniform(0.05, 0.3), random.uniform(0, 4e5))
    return force


def harmonic_angle(random):
    force = openmm.HarmonicAngleForce()
    for triple in groups(random, 3):
        force.addAngle(*triple, random.uniform(0, np.pi), random.uniform(0, 800))
    return force


def periodic_torsion(random):
    force = openmm.PeriodicTorsionForce()
    for four in groups(random, 4):
        force.addTorsion(*four, int(random.integers(1, 9)), random.uniform(-7, 7), random.normal(scale=20))
    return force


def rb_torsion(random):
    force = openmm.RBTorsionForce()
    for four in groups(random, 4):
        force.addTorsion(*four, *random.normal(scale=20, size=6))
    return force


def cmap_torsion(random):
    force = openmm.CMAPTorsionForce()
    for size in (24, 5, 8):
        force.addMap(size, random.normal(scale=10, size=size * size))
    for _ in range(random.integers(1, 5)):
        first, second = random.permutation(N_ATOMS)[:4], random.permutation(N_ATOMS)[:4]
        force.addTorsion(int(random.choice([0, 2])), *map(int, first), *map(int, second))
    return force


def nonbonded(random):
    force = openmm.NonbondedForce()
    for _ in range(N_ATOMS):
        force.addParticle(random.normal(), random.uniform(0, 0.3), random.choice([0.0, random.uniform(0, 2)]))
    pairs = list(itertools.combinations(range(N_ATOMS), 2))
    for index in random.permutation(len(pairs))[:10]:
        pair = pairs[index] if random.random() < 0.5 else pairs[index][::-1]
        empty = random.random() < 0.4
        force.addException(
            *pair, *([0, 0.1, 0] if empty else [random.normal(), random.uniform(0, 0.3), random.random()])
        )
    force.addGlobalParameter("lambda", random.uniform(0, 1))
    force.addGlobalParameter("mu", random.uniform(-1, 1))
    # Each particle once by each parameter: of two the Reference platform takes the last, the others the sum.
    for name, particle in (("mu", 3), ("mu", 5), ("lambda", 3), ("lambda", 0)):
        force.addParticleParameterOffset(name, particle, random.normal(), 0.05, 0.1 * (name == "lambda"))
    for name, exception in (("lambda", 0), ("lambda", 4), ("mu", 4)):
        force.addExceptionParameterOffset(name, exception, random.normal(), 0.01, 0.2 * (name == "lambda"))
    return force


def gbsa_obc(random):
    force = openmm.GBSAOBCForce()
    for _ in range(N_ATOMS):
        force.addParticle(random.normal(scale=0.5), random.uniform(0.1, 0.25), random.uniform(0.5, 1))
    force.setSolventDielectric(random.uniform(2, 80))
    force.setSoluteDielectric(random.uniform(1, 2))
    force.setSurfaceAreaEnergy(random.uniform(0, 4))
    return force


def custom_bond(random):
    force = openmm.CustomBondForce("scale*d*(1-exp(-a*(r-r0)))^2 + min(r,r0)*step(r-r0); scale=s^2")
    force.addGlobalParameter("s", random.uniform(0.5, 2))
    for name in ("d", "a", "r0"):
        force.addPerBondParameter(name)
    for pair in groups(random, 2):
        force.addBond(*pair, [random.uniform(100, 500), random.uniform(1, 20), random.uniform(0.1, 0.3)])
    return force


def custom_angle(random):
    force = openmm.CustomAngleForce("k*(cos(theta)-c)^2 + k*sin(theta/2)*theta + atan2(theta, c)")
    for name in ("k", "c"):
        force.addPerAngleParameter(name)
    for triple in groups(random, 3):
        force.addAngle(*triple, [random.uniform(0, 500), random.uniform(0.2, 1)])
    return force


def custom_torsion(random):
    force = openmm.CustomTorsionForce("k*(1+cos(n*theta-t0)) + select(step(theta), k*theta^2, -0.3*theta)")
    for name in ("k", "n", "t0"):
        force.addPerTorsionParameter(name)
    for four in groups(random, 4):
        force.addTorsion(*four, [random.normal(scale=20), float(random.integers(0, 5)), random.uniform(-3, 3)])
    return force


def custom_nonbonded(random):
    force = openmm.CustomNonbondedForce(
        "scale*(q1*q2/r + table(r)*sqrt(e1*e2) + grid(r, w1+w2) + kind(t1, t2)*exp(-r/0.1)); scale=1/(1+alpha)"
    )
    force.addGlobalParameter("alpha", random.uniform(0, 2))
    for name in ("q", "e", "w", "t"):
        force.addPerParticleParameter(name)
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(random.normal(scale=5, size=12), 0.05, 1.5))
    values = random.normal(scale=5, size=7 * 9)
    force.addTabulatedFunction("grid", openmm.Continuous2DFunction(7, 9, values, 0.0, 2.0, 0.0, 1.0))
    kinds = random.normal(size=(3, 3))
    force.addTabulatedFunction("kind", openmm.Discrete2DFunction(3, 3, (kinds + kinds.T).ravel()))
    for _ in range(N_ATOMS):
        force.addParticle([random.normal(), random.random(), random.uniform(0.1, 0.4), float(random.integers(0, 3))])
    pairs = list(itertools.combinations(range(N_ATOMS), 2))
    for index in random.permutation(len(pairs))[:8]:
        force.addExclusion(*(pairs[index] if random.random() < 0.5 else pairs[index][::-1]))
    return force


def custom_compound(random):
    force = openmm.CustomCompoundBondForce(
        4,
        "k*(distance(p1,p3)-d0)^2 + sin(2*angle(p4,p2,p1))*distance(p1, p3) + k*cos(dihedral(p3,p1,p2,p4)-d0)"
        "+ pointdistance(x1,y1,z1,x4,y4,z4)^2 + x1*y2 - z3^2*x1 + g(distance(p2,p4))"
        "+ k*cos(pointangle(x1,y1,z1,x2,y2,z2,x3,y3,z3))"
        "+ pointdihedral(x4,y4,z4,x3,y3,z3,x2,y2,z2,x1,y1,z1)*global",
    )
    force.addGlobalParameter("global", random.normal())
    force.addPerBondParameter("k")
    force.addPerBondParameter("d0")
    force.addTabulatedFunction("g", openmm.Continuous1DFunction(random.normal(scale=5, size=9), 0.0, 2.0))
    for four in groups(random, 4):
        force.addBond(four, [random.uniform(0, 100), random.uniform(0, 1)])
    return force


def custom_external(random):
    force = openmm.CustomExternalForce("k*((x-x0)^2 + 2*(y-0.1)^2) + 3*z*x + k*max(z, 0)")
    force.addPerParticleParameter("k")
    force.addPerParticleParameter("x0")
    for atom in random.integers(0, N_ATOMS, size=5):
        force.addParticle(int(atom), [random.uniform(0, 100), random.normal()])
    return force


def custom_gb(random):
    """Not a solvent: exclusions, values of values and of coordinates, sums of every kind."""
    force = openmm.CustomGBForce()
    force.addGlobalParameter("c", random.uniform(0.5, 1.5))
    for name in ("q", "s"):
        force.addPerParticleParameter(name)
    force.addTabulatedFunction("g", openmm.Continuous1DFunction(random.normal(size=9), 0.0, 2.0))
    pair = openmm.CustomGBForce.ParticlePair
    every = openmm.CustomGBForce.ParticlePairNoExclusions
    single = openmm.CustomGBForce.SingleParticle
    force.addComputedValue("I", "s2*exp(-r/(s1+0.3)) + c*g(r)", pair if random.random() < 0.5 else every)
    force.addComputedValue("B", "1/(1+I^2*s) + 0.1*x", single)
    force.addComputedValue("D", "B*I - y*z*q", single)
    force.addEnergyTerm("q^2*B*c + D*x + tanh(I)", single)
    force.addEnergyTerm("q1*q2/sqrt(r^2+f*f); f=(B1*B2)^2+exp(-D1*D2/4)", every)
    force.addEnergyTerm("c*(D1-D2)^2/r + I1*I2*g(r)", pair)
    for _ in range(N_ATOMS):
        force.addParticle([random.normal(), random.uniform(0.1, 1)])
    pairs = list(itertools.combinations(range(N_ATOMS), 2))
    for index in random.permutation(len(pairs))[:8]:
        force.addExclusion(*pairs[index])
    return force


BUILDERS = [
    *(harmonic_bond, harmonic_angle, periodic_torsion, rb_torsion, cmap_torsion, nonbonded, gbsa_obc, custom_bond),
    *(custom_angle, custom_torsion, custom_nonbonded, custom_compound, custom_external, custom_gb),
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
@examples
@given(seed=seeds)
def test_each_class_of_force(build, seed):
    random = np.random.default_rng(seed)
    assert_agrees(system_of(build(random)), frames_of(random))


@settings(examples, max_examples=6)
@given(seed=seeds)
def test_several_forces_groups_and_motion_removers(seed):
    random = np.random.default_rng(seed)
    chosen = [BUILDERS[k] for k in random.integers(0, len(BUILDERS), size=5)]
    forces = [build(random) for build in chosen]
    for force in forces:
        # Each declares its own global parameters; OpenMM wants equal defaults for equal names.
        if hasattr(force, "getNumGlobalParameters"):
            for index in range(force.getNumGlobalParameters()):
                force.setGlobalParameterDefaultValue(index, 0.7)
        force.setForceGroup(int(random.integers(0, 32)))
    forces.insert(2, openmm.CMMotionRemover(10))
    assert_agrees(system_of(*forces), frames_of(random))


FEATURES = {
    "operators": "((-r+2.5)*3/(1+r)-r^2)^3 + 2^(r-1) - r^-2 - -r",
    "roots and logarithms": "sqrt(r+1)*log(r+0.5)*exp(-r)",
    "circular": "sin(r)+cos(2*r)*tan(r/4)+sec(r/3)+csc(r+0.5)+cot(r+0.5)",
    "inverse circular": "asin(r/9)+acos(r/9)*atan(r)+atan2(r,0.3)",
    "hyperbolic": "sinh(r)+cosh(r)*tanh(r)",
    "error functions": "erf(r)+erfc(2*r)",
    "steps": "step(r-0.4)*r+delta(r-0.4)+floor(5*r)*r+ceil(5*r)*r",
    "short forms": "square(r)+cube(r)+recip(r)+abs(r-0.4)",
    "choices": "min(r,0.4)+max(r,0.4)+select(step(r-0.3),r^2,r)",
    "intermediate values": "u*v; u=w^2+1; v=w-k; w=r*k; k=3.5e-1",
}


@pytest.mark.parametrize("text", FEATURES.values(), ids=FEATURES)
def test_every_operator_and_function_in_forces(text):
    random = np.random.default_rng(5)
    bond, pair = openmm.CustomBondForce(text), openmm.CustomNonbondedForce(text)
    value = openmm.CustomGBForce()
    value.addComputedValue("I", text, openmm.CustomGBForce.ParticlePairNoExclusions)
    value.addEnergyTerm("log(1+I^2)", openmm.CustomGBForce.SingleParticle)
    for atoms in groups(random, 2):
        bond.addBond(*atoms)
    for _ in range(N_ATOMS):
        pair.addParticle([])
        value.addParticle([])
    compound = openmm.CustomCompoundBondForce(2, f"0.5*u; u={text}; r=distance(p2,p1)")
    compound.addBond([1, 6])
    assert_agrees(system_of(bond, pair, value, compound), frames_of(random))


CONSTANTS = {
    "CustomBondForce": lambda: openmm.CustomBondForce("2.5"),
    "CustomAngleForce": lambda: openmm.CustomAngleForce("2.5"),
    "CustomTorsionForce": lambda: openmm.CustomTorsionForce("2.5"),
    "CustomExternalForce": lambda: openmm.CustomExternalForce("2.5"),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("with_parameter", [False, True])
def test_terms_without_geometry_count_once_per_interaction(name, with_parameter):
    force = CONSTANTS[name]()
    size = {"CustomBondForce": 2, "CustomAngleForce": 3, "CustomTorsionForce": 4, "CustomExternalForce": 1}[name]
    item = {"CustomExternalForce": "Particle"}.get(name, name.removeprefix("Custom").removesuffix("Force"))
    if with_parameter:
        getattr(force, f"addPer{item}Parameter")("k")
        force.setEnergyFunction("k")
    for first in (0, 2, 2):
        getattr(force, f"add{item}")(*range(first, first + size), *([[1.0 + first]] if with_parameter else []))
    assert_agrees(system_of(force), frames_of(np.random.default_rng(0)))


def test_pairs_without_distance_count_once_per_pair():
    random = np.random.default_rng(0)
    plain, charges = openmm.CustomNonbondedForce("1.5"), openmm.CustomNonbondedForce("q1*q2+q1+q2")
    charges.addPerParticleParameter("q")
    born = openmm.CustomGBForce()
    born.addPerParticleParameter("q")
    born.addComputedValue("I", "1", openmm.CustomGBForce.ParticlePair)
    born.addComputedValue("J", "I+q", openmm.CustomGBForce.SingleParticle)
    born.addEnergyTerm("3", openmm.CustomGBForce.SingleParticle)
    born.addEnergyTerm("2", openmm.CustomGBForce.ParticlePair)
    born.addEnergyTerm("J1*J2", openmm.CustomGBForce.ParticlePairNoExclusions)
    for _ in range(N_ATOMS):
        plain.addParticle([])
        charges.addParticle([random.normal()])
        born.addParticle([random.normal()])
    for force in (plain, charges, born):
        force.addExclusion(0, 5)
    assert_agrees(system_of(plain, charges, born), frames_of(random))


EMPTY = [
    openmm.HarmonicBondForce,
    openmm.HarmonicAngleForce,
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CMAPTorsionForce,
    lambda: openmm.CustomBondForce("r^3"),
    lambda: openmm.CustomAngleForce("theta^3"),
    lambda: openmm.CustomTorsionForce("theta^3"),
    lambda: openmm.CustomExternalForce("x^2"),
    lambda: openmm.CustomCompoundBondForce(3, "x1*distance(p2,p3)"),
]


def test_forces_without_interactions_have_no_energy():
    frames = frames_of(np.random.default_rng(0))
    for make in EMPTY:
        assert_agrees(system_of(make()), frames)
    assert_agrees(system_of(*(make() for make in EMPTY)), frames)
    assert_agrees(system_of(), frames)


@pytest.mark.parametrize("n_atoms", [1, 2])
def test_one_and_two_atoms(n_atoms):
    random = np.random.default_rng(0)
    external = openmm.CustomExternalForce("x^2+y*z")
    external.addParticle(n_atoms - 1)
    coulomb, own = openmm.NonbondedForce(), openmm.CustomNonbondedForce("exp(-r)")
    obc, born = openmm.GBSAOBCForce(), openmm.CustomGBForce()
    born.addComputedValue("I", "exp(-r)", openmm.CustomGBForce.ParticlePair)
    born.addEnergyTerm("1/(1+I)+x*y", openmm.CustomGBForce.SingleParticle)
    for _ in range(n_atoms):
        coulomb.addParticle(random.normal(), 0.2, 0.5)
        own.addParticle([])
        obc.addParticle(random.normal(), 0.15, 0.8)
        born.addParticle([])
    forces = [external, coulomb, own, obc, born]
    if n_atoms == 2:
        bond = openmm.CustomBondForce("(r-0.1)^2*k")
        bond.addPerBondParameter("k")
        bond.addBond(0, 1, [100.0])
        bond.addBond(1, 0, [50.0])
        compound = openmm.CustomCompoundBondForce(2, "distance(p1,p2)^2+x1")
        compound.addBond([1, 0])
        forces += [bond, compound]
    for force in forces:
        assert_agrees(system_of(force, n_atoms=n_atoms), frames_of(random, n_atoms=n_atoms))
    assert_agrees(system_of(*forces, n_atoms=n_atoms), frames_of(random, n_atoms=n_atoms))


def test_spellings_of_compound_variables():
    force = openmm.CustomCompoundBondForce(
        3, "a + b*c; c=cos(b)+distance(p1,p2)^2+x3-y3+z3; b=angle(p1,p2,p3); a=distance( p1 , p2 )*x1"
    )
    force.addBond([5, 2, 7])
    force.addBond([7, 2, 5])
    assert_agrees(system_of(force), frames_of(np.random.default_rng(1)))


@pytest.mark.parametrize(
    "text",
    [
        "pointdistance(x1,y2,z1,0.5,y2,z2+0.1)^2",
        "cos(pointangle(x1,y1,z1,(x2+x3)/2,(y2+y3)/2,(z2+z3)/2,x3,0.7,z3))",
        "2*cos(pointdihedral(x1,y1,z1,x2,y2,z2,x3,y3,z3,0.1*x1,y2-1,z3+x2)-0.4)",
    ],
)
def test_points_between_and_beside_particles(text):
    force = openmm.CustomCompoundBondForce(3, text)
    force.addBond([0, 1, 2])
    force.addBond([4, 2, 6])
    assert_agrees(system_of(force), frames_of(np.random.default_rng(3)))


def test_a_point_lacking_a_coordinate_is_pointed_at():
    force = openmm.CustomCompoundBondForce(2, "pointdistance(x1,y1,z1,x2,y2)")
    force.addBond([0, 1])
    with pytest.raises(PotentialError, match="'pointdistance' takes 6 arguments, not 5"):
        CompiledPotential(system_of(force), verify=False)


@pytest.mark.parametrize("build", [custom_compound, custom_gb, custom_nonbonded, gbsa_obc], ids=lambda b: b.__name__)
def test_forces_are_the_derivative_of_the_energy(build):
    random = np.random.default_rng(11)
    potential = CompiledPotential(system_of(build(random)), compile=False, verify=False)
    x = torch.from_numpy(frames_of(random, 2)).requires_grad_()
    # Energies of 1e3 kJ/mol leave about 1e-7 of rounding in a difference quotient with steps of 1e-6 nm.
    assert torch.autograd.gradcheck(potential, (x,), eps=1e-6, atol=1e-3, rtol=1e-5)
