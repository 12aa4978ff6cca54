"""Targets given as functions: values, forces, and what becomes of samples for which a function fails."""

import pickle

import numpy as np
import pytest
import torch

from boltzgen.energy.base import Potential, Status
from boltzgen.energy.function import AsePotential, FunctionPotential, SampleFunctionPotential
from boltzgen.errors import PotentialError

STIFFNESS, LENGTH = 500.0, 0.15


def bond(positions):
    """A harmonic bond in torch, (B, 2, 3) nm to (B,) kJ/mol."""
    return STIFFNESS * ((positions[:, 0] - positions[:, 1]).norm(dim=1) - LENGTH) ** 2


def bond_of_one(x):
    """The same in numpy, for one configuration."""
    return STIFFNESS * (np.linalg.norm(x[0] - x[1]) - LENGTH) ** 2


def bond_forces_of_one(x):
    vector = x[0] - x[1]
    distance = np.linalg.norm(vector)
    force = -2 * STIFFNESS * (distance - LENGTH) * vector / distance
    return np.stack([force, -force])


def configurations(n=6, dtype=torch.float64):
    return 0.1 * torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def expected(x):
    values = [bond_of_one(one) for one in x.double().numpy()]
    return torch.tensor(values), torch.as_tensor(np.stack([bond_forces_of_one(one) for one in x.double().numpy()]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: FunctionPotential(bond, 2),
        lambda: FunctionPotential(bond, 2, batch_size=4),
        lambda: SampleFunctionPotential(bond_of_one, 2, forces=bond_forces_of_one),
    ],
)
def test_energies_and_forces(build):
    potential, x = build(), configurations()
    energy, forces = expected(x)
    assert isinstance(potential, Potential)
    torch.testing.assert_close(potential(x), energy)
    for found, exact in zip(potential.energy_and_forces(x), (energy, forces), strict=True):
        torch.testing.assert_close(found, exact)
    assert torch.autograd.gradcheck(potential, x.clone().requires_grad_(True))
    torch.testing.assert_close(potential.terms(x)["function"], energy)
    single = potential(x.float())
    assert single.dtype == torch.float32
    # Rounding of the coordinates, 1e-8 nm, times forces below 1e3 kJ/mol/nm.
    torch.testing.assert_close(single.double(), energy, rtol=1e-5, atol=1e-5)
    assert "function" in potential.report()


def test_no_gradient_is_computed_unless_asked_for():
    seen = []

    def energy(positions):
        seen.append(positions.requires_grad)
        return bond(positions)

    potential, x = FunctionPotential(energy, 2), configurations()
    potential(x)
    potential.status(x)
    assert seen == [False, False]
    potential.energy_and_forces(x)
    assert seen == [False, False, True]
    assert (potential.counts.energy, potential.counts.force) == (18, 6)


def test_forces_given_by_a_function_are_used():
    potential = FunctionPotential(bond, 2, forces=lambda positions: torch.full_like(positions, 3.0))
    assert bool((potential.energy_and_forces(configurations())[1] == 3.0).all())


def test_energy_through_numpy_works_with_forces_and_says_so_without():
    detached = lambda positions: torch.as_tensor([bond_of_one(x) for x in positions.detach().double().numpy()])
    x = configurations()
    potential = FunctionPotential(detached, 2, name="hidden numpy")
    torch.testing.assert_close(potential(x), expected(x)[0])
    with pytest.raises(PotentialError, match=r"hidden numpy.*forces="):
        potential.energy_and_forces(x)


def test_terms_by_name():
    parts = {"bond": bond, "field": lambda positions: positions[:, 0, 0]}
    total = lambda positions: bond(positions) + positions[:, 0, 0]
    potential, x = FunctionPotential(total, 2, terms=parts), configurations()
    terms = potential.terms(x)
    assert list(terms) == ["bond", "field"]
    torch.testing.assert_close(sum(terms.values()), potential(x))


def test_machine_learned_potential_gets_no_gradient_of_its_parameters():
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    potential = FunctionPotential(lambda positions: network(positions.flatten(1)).squeeze(1), 2)
    x = configurations().requires_grad_(True)
    assert torch.autograd.gradcheck(potential, x)
    potential(x).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_other_dimensions_than_three():
    potential = FunctionPotential(lambda x: x.square().sum((1, 2)), 1, dimension=5)
    x = torch.ones(2, 1, 5)
    assert potential(x).tolist() == [5.0, 5.0]
    with pytest.raises(PotentialError, match=r"\(B, 1, 5\)"):
        potential(torch.ones(2, 1, 3))


def test_a_function_of_the_batch_that_fails_is_named():
    def broken(positions):
        raise KeyError("no such element")

    with pytest.raises(PotentialError, match=r"my model: the energy failed with KeyError.*no such element"):
        FunctionPotential(broken, 2, name="my model")(configurations())


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x, lambda x: [1.0] * len(x)])
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(PotentialError, match="tensor of shape"):
        FunctionPotential(wrong, 2)(configurations())


def test_undefined_and_infinite_energies_of_a_batch_function():
    def energy(positions):
        first = positions[:, 0, 0]
        value = torch.where(first > 5, torch.nan, bond(positions))
        return torch.where(first < -5, torch.inf, value)

    potential, x = FunctionPotential(energy, 2), configurations(5)
    x[1, 0, 0], x[2, 0, 0], x[3] = 9.0, -9.0, torch.nan
    assert potential.status(x).tolist() == [Status.OK, Status.DEFECT, Status.INFINITE, Status.DEFECT, Status.OK]
    found, forces = potential.energy_and_forces(x)
    torch.testing.assert_close(found[[0, 4]], expected(x[[0, 4]])[0])
    torch.testing.assert_close(forces[[0, 4]], expected(x[[0, 4]])[1])
    assert bool((forces[1:4] == 0).all())


def flaky(failures):
    """Raises for configurations whose first coordinate is above 5, as often as said."""
    calls = []

    def energy(x):
        if x[0, 0] > 5:
            calls.append(1)
            if len(calls) <= failures:
                raise RuntimeError("SCF not converged")
        if x[0, 0] < -5:
            return np.nan
        return bond_of_one(x)

    return SampleFunctionPotential(energy, 2, forces=bond_forces_of_one, name="engine")


def test_failure_for_one_sample_loses_that_sample_only(caplog):
    x = configurations(5)
    x[1, 0, 0], x[2, 0, 0], x[3, 0, 0] = 9.0, -9.0, torch.nan
    potential = flaky(failures=1000)
    energy, forces = potential.energy_and_forces(x)
    torch.testing.assert_close(energy[[0, 4]], expected(x[[0, 4]])[0])
    assert torch.isnan(energy).tolist() == [False, True, True, True, False]
    assert bool((forces[1:4] == 0).all())
    assert potential.status(x).tolist() == [Status.OK, Status.LOST, Status.DEFECT, Status.DEFECT, Status.OK]
    assert (potential.counts.lost, potential.counts.defect) == (2, 4)
    assert "SCF not converged" in potential.report()
    assert "1 of 5 evaluations lost" in caplog.text


def test_a_failure_that_passes_is_repeated():
    x = configurations(3)
    x[1, 0, 0] = 9.0
    potential = flaky(failures=1)
    assert potential.status(x).tolist() == [Status.OK] * 3
    torch.testing.assert_close(potential(x), expected(x)[0])


def test_functions_of_one_sample_that_return_the_wrong_thing_are_refused():
    x = configurations()
    with pytest.raises(PotentialError, match="one number"):
        SampleFunctionPotential(lambda one: one[:, 0], 2)(x)
    with pytest.raises(PotentialError, match=r"shape \(2, 3\)"):
        SampleFunctionPotential(bond_of_one, 2, forces=lambda one: one[0]).energy_and_forces(x)
    energies_only = SampleFunctionPotential(bond_of_one, 2)
    torch.testing.assert_close(energies_only(x), expected(x)[0])
    with pytest.raises(PotentialError, match="no forces"):
        energies_only.energy_and_forces(x)


def test_a_function_that_works_in_place_changes_nothing():
    def careless(x):
        x *= 0
        return 1.0

    x = configurations()
    before = x.clone()
    SampleFunctionPotential(careless, 2, forces=bond_forces_of_one).energy_and_forces(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


class Calculator:
    """Stands for an ASE calculator."""


class Atoms:
    """ASE's interface for two atoms on a spring, in eV and angstrom: 2 eV/A^2 and 1.1 A."""

    def __init__(self, pbc=False, constraints=(), calc=None):
        self.pbc, self.constraints = np.array([pbc] * 3), list(constraints)
        self.calc = calc or Calculator()
        self.positions = np.zeros((2, 3))
        self.n_energies = 0

    def __len__(self):
        return 2

    def set_positions(self, positions):
        self.positions = np.array(positions)

    def get_potential_energy(self):
        self.n_energies += 1
        distance = np.linalg.norm(self.positions[0] - self.positions[1])
        if distance > 50:
            raise RuntimeError("atoms too far apart")
        return 0.5 * 2.0 * (distance - 1.1) ** 2

    def get_forces(self):
        vector = self.positions[0] - self.positions[1]
        distance = np.linalg.norm(vector)
        force = -2.0 * (distance - 1.1) * vector / distance
        return np.stack([force, -force])


def test_ase_units_and_failures():
    atoms = Atoms()
    potential = AsePotential(atoms)
    x = torch.tensor([[[0.0, 0, 0], [0.21, 0, 0]], [[0.0, 0, 0], [9.0, 0, 0]]], dtype=torch.float64)
    energy, forces = potential.energy_and_forces(x)
    # At 2.1 angstrom: 1 eV and 2 eV/angstrom; 1 eV is 96.4853321 kJ/mol (CODATA 2018).
    assert float(energy[0]) == pytest.approx(96.4853321, rel=1e-9)
    torch.testing.assert_close(forces[0], torch.tensor([[1929.706642, 0, 0], [-1929.706642, 0, 0]]).double())
    assert potential.status(x).tolist() == [Status.OK, Status.LOST]
    assert torch.autograd.gradcheck(potential, x[:1].clone().requires_grad_(True))
    assert "Calculator" in potential.report()
    atoms.n_energies = 0
    potential.energy_and_forces(x[:1])
    assert atoms.n_energies == 1


def test_unsuitable_ase_atoms_are_refused():
    with pytest.raises(PotentialError, match="periodic"):
        AsePotential(Atoms(pbc=True))
    with pytest.raises(PotentialError, match="constraints"):
        AsePotential(Atoms(constraints=["FixAtoms"]))
    bare = Atoms()
    bare.calc = None
    with pytest.raises(PotentialError, match=r"atoms\.calc"):
        AsePotential(bare)


def test_pickled_potentials_give_the_same_energies():
    x = configurations()
    for potential in (FunctionPotential(bond, 2), SampleFunctionPotential(bond_of_one, 2), AsePotential(Atoms())):
        torch.testing.assert_close(pickle.loads(pickle.dumps(potential))(x), potential(x))
