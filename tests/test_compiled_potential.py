"""Options of `CompiledPotential`, and what is done about a compiler that gets an energy wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import openmm
import pytest
import torch

import boltzgen.energy as energy
from boltzgen.energy.verify import perturbed_frames
from boltzgen.errors import PotentialError

CHAIN = [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.14, 0.0], [0.34, 0.15, 0.05]]


@pytest.fixture
def chain() -> openmm.System:
    """Four atoms with stiff stretches and a weak torsion."""
    system = openmm.System()
    for _ in CHAIN:
        system.addParticle(12.0)
    bonds, torsions = openmm.HarmonicBondForce(), openmm.PeriodicTorsionForce()
    for first in range(3):
        bonds.addBond(first, first + 1, 0.15, 3e5)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.0, 2.0)
    system.addForce(bonds)
    system.addForce(torsions)
    return system


def test_dtype_is_the_precision_of_the_evaluation_not_of_the_verification(chain: openmm.System) -> None:
    single = energy.CompiledPotential(chain, dtype=torch.float32, positions=CHAIN)
    double = energy.CompiledPotential(chain, positions=CHAIN)
    assert single.agreement is not None
    assert max(single.agreement.energy.values()) < 1e-9
    assert max(single.agreement.single.values()) > 1e-9  # float32 really was compared with float64
    x = torch.from_numpy(perturbed_frames(CHAIN, 8, seed=2))
    for value, exact in zip(single.terms(x).values(), double.terms(x).values(), strict=True):
        assert value.dtype == torch.float64
        assert 0 < (value - exact).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (CHAIN[:3], "4 particles, but positions are given for 3"),
        ([CHAIN, CHAIN], "one structure"),
        ([[float("nan")] * 3] * 4, "finite"),
    ],
)
def test_positions_that_do_not_fit_are_named(chain: openmm.System, positions: Any, message: str) -> None:
    with pytest.raises(PotentialError, match=message):
        energy.CompiledPotential(chain, positions=positions)


@pytest.mark.parametrize("backend", ["auto", "compiled", "openmm"])
def test_what_is_no_system_is_refused(backend: str) -> None:
    with pytest.raises(PotentialError, match=r"openmm\.System, not of a str"):
        energy.potential("molecule.pdb", backend, positions=CHAIN)


def test_chunk_must_be_positive(chain: openmm.System) -> None:
    with pytest.raises(PotentialError, match="chunk"):
        energy.CompiledPotential(chain, chunk=0, positions=CHAIN)


def test_pickles_after_compilation(chain: openmm.System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    potential = energy.CompiledPotential(chain, compile=True, positions=CHAIN)
    x = torch.tensor([CHAIN, CHAIN], dtype=torch.float64)
    expected = potential(x)
    assert "torch.compile" in potential.report()
    assert torch.equal(pickle.loads(pickle.dumps(potential))(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiler_that_loses_a_weak_term_is_found_out(
    chain: openmm.System, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_torsion(function: Callable[[torch.Tensor], Any], **_: object) -> Callable[[torch.Tensor], Any]:
        weak = energy.CompiledPotential(chain, compile=False, verify=False)

        def wrong(x: torch.Tensor) -> Any:
            value, *rest = function(x)
            return value - 0.5 * weak.terms(x.permute(2, 1, 0))["PeriodicTorsionForce"], *rest

        return wrong

    monkeypatch.setattr(torch, "compile", without_torsion)
    potential = energy.CompiledPotential(chain, compile=True, positions=CHAIN)
    x = torch.tensor([CHAIN, CHAIN], dtype=dtype)
    exact = energy.CompiledPotential(chain, compile=False, positions=CHAIN)(x)
    assert torch.equal(potential(x), exact)
    assert "differs" in potential.compile_reason
    assert "Evaluation: eager" in potential.report()


def test_capped_energy_of_an_openmm_potential_is_verified(
    chain: openmm.System, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = energy.OpenMMPotential(chain, "Reference", positions=CHAIN)
    x = torch.tensor([CHAIN], dtype=torch.float64)
    torch.testing.assert_close(potential.capped(1e9)(x), potential(x))
    monkeypatch.setattr("boltzgen.energy.terms.BondedTerms.torsion_energy", lambda self, c, s, g: (0 * c, 0 * c))
    with pytest.raises(PotentialError, match="PeriodicTorsionForce"):
        potential.capped(1e9)
