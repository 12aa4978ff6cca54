"""The answer of a run: comparison with a reference where everything is known, the recheck, and the verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from boltzgen.collective_variables import parse_basin, parse_variable
from boltzgen.energy.base import EvaluationCounts
from boltzgen.free_energy import BasinFreeEnergy
from boltzgen.generator import BoltzmannGenerator
from boltzgen.progress import describe_record, format_duration, shown_steps
from boltzgen.run.answer import UNCHECKED, Recheck, final_verdict, format_answer, recheck_energies, result_values
from boltzgen.run.comparison import compare, disagreement
from boltzgen.sampling import SamplingRun

BASINS = {"C7ax": "0 < phi < 150"}
GOOD = Recheck(1000, 1e-9, "Reference")
SHIFT = 7.0  # kT
TILT = 0.2  # kT; weights exp(TILT cos phi), phi uniform: log Z = SHIFT + log I0(TILT)


class TiltedDensity:
    """The energy of which an untrained flow, with uniform torsions, is nearly the Boltzmann density: log Z is known."""

    name = "tilted density"

    def __init__(self, flow, molecule):
        self.flow, self.kT, self.phi = flow, molecule.kT, parse_variable("phi", molecule)
        self.n_atoms, self.counts = flow.n_atoms, EvaluationCounts()

    def __call__(self, positions):
        with torch.no_grad():
            log_q = self.flow.log_prob(positions.float()).double()
            return -self.kT * (log_q + SHIFT + TILT * torch.cos(torch.deg2rad(self.phi(positions))))


@pytest.fixture(scope="module")
def perfect(dipeptide, generator):
    return BoltzmannGenerator(generator.flow, TiltedDensity(generator.flow, dipeptide), molecule=dipeptide, seed=3)


@pytest.fixture(scope="module")
def generated(perfect):
    return perfect.sample(4000)


def as_reference(ensemble, **changes):
    ensemble = replace(ensemble, groups=np.arange(len(ensemble)) % 20, **changes)
    return SamplingRun(ensemble, "independent draws", len(ensemble), 1.0, 1, 1.0, 0)


def test_nearly_perfect_generator_is_found_so(perfect, generated):
    found = compare(perfect, generated, as_reference(perfect.sample(3000)), BASINS)
    assert found.log_z == pytest.approx(SHIFT + math.log(np.i0(TILT)), abs=0.01)
    # E_p[p/q] = I0(2 TILT) / I0(TILT)^2
    assert found.forward_ess == pytest.approx(np.i0(TILT) ** 2 / np.i0(2 * TILT), abs=0.01)
    assert set(found.coverages) == {"C7ax", "not C7ax"}
    for value in found.coverages.values():
        assert math.exp(-TILT) < value.coverage <= 1.0
    assert found.share_outside == 0.0
    free_energies = generated.free_energy(BASINS)
    assert free_energies["C7ax"].probability == pytest.approx(150 / 360, abs=0.06)
    assert not disagreement(free_energies, found.free_energies, "the reference")
    assert final_verdict(generated, free_energies, found, {}, GOOD).verdict == "usable"
    assert final_verdict(generated, free_energies, None, {}, GOOD).verdict == UNCHECKED


def test_mirror_images_lie_outside(perfect, generated):
    reference = perfect.sample(1000)
    positions = reference.positions.copy()
    positions[::4, :, 0] *= -1
    found = compare(perfect, generated, as_reference(reference, positions=positions), BASINS)
    assert found.share_outside == pytest.approx(0.25, abs=0.02)
    assert len(found.reference) == 750
    judged = final_verdict(generated, generated.free_energy(BASINS), found, {}, GOOD)
    assert judged.verdict == "do not use"
    assert f"{found.share_outside:.2%}" in judged.reason


def test_basin_that_the_reference_never_saw_is_no_proof(perfect, generated):
    reference = perfect.sample(2000)
    kept = ~parse_basin(BASINS["C7ax"], perfect.molecule).contains(reference.positions)
    found = compare(perfect, generated, as_reference(reference[kept]), BASINS)
    judged = final_verdict(generated, generated.free_energy(BASINS), found, {}, GOOD)
    assert judged.verdict == UNCHECKED
    assert "C7ax" in judged.reason


def test_shipped_reference_can_refuse(generated):
    free_energies = generated.free_energy(BASINS)
    ours = free_energies["C7ax"]
    near = replace(ours, low=ours.value - 0.05, high=ours.value + 0.05)
    far = replace(near, value=near.value + 3)
    assert final_verdict(generated, free_energies, None, {"C7ax": near}, GOOD).verdict == UNCHECKED
    judged = final_verdict(generated, free_energies, None, {"C7ax": far}, GOOD)
    assert judged.verdict == "do not use"
    assert "-3.00 kT" in judged.reason


def test_basin_without_samples_is_not_determined(perfect, generated):
    basins = {"crushed": "distance(0, 21) < 0.01"}
    free_energies = generated.free_energy(basins)
    judged = final_verdict(generated, free_energies, None, {}, GOOD)
    assert judged.verdict == "do not use"
    assert "crushed" in judged.reason
    values = result_values(generated, free_energies, judged, None, {}, Recheck(0, math.nan, "Reference"))
    spent = {"energy_evaluations": 1, "force_evaluations": 0, "wall_seconds": 61.0}
    events = {"training_events": [{"step": 1200, "kind": "alarm", "message": "the basin gets lost"}]}
    text = format_answer(values | spent | events)
    assert "training " not in format_answer(values | spent)
    assert "alarm at step 1,200: the basin gets lost" in text
    assert "ΔF(crushed)" in text
    assert "not determined" in text
    assert "1 min 01 s" in text


def test_recheck_sees_the_heaviest_sample(generator):
    ensemble = generator.sample(3000)
    assert recheck_energies(ensemble, 200).max_abs_difference_kJ_per_mol < 1e-6
    energies = ensemble.energies.copy()
    energies[np.argmax(ensemble.log_weights)] += 0.5
    wrong = replace(ensemble, energies=energies)
    found = recheck_energies(wrong, 200)
    assert found.max_abs_difference_kJ_per_mol == pytest.approx(0.5, abs=1e-6)
    assert found.n == 200


def test_units_of_an_estimate_agree():
    basin = BasinFreeEnergy(
        name="A", expression="phi > 0", probability=0.5, value=0.0, low=-0.1, high=0.1, kT=2.5, n_in_basin=5
    )
    values = {"free_energies": {"A": basin.to_dict()}, "reference": {}, "kT_kJ_per_mol": 2.5}
    from boltzgen.run.answer import _free_energy_rows

    ((_, text),) = _free_energy_rows(values)
    assert "± 0.10 kT" in text
    assert "± 0.25 kJ/mol" in text
    assert "± 0.06 kcal/mol" in text


def test_progress_texts():
    record = {
        "stage": "cooling",
        "temperature": 812.3,
        "loss": 0.314,
        "ess_fraction": 0.71,
        "populations": {"A": 0.012},
        "energy_evaluations": 123_456,
        "seconds": 61.0,
    }
    shown = "cooling 1.23e+05 evaluations in 1 min 01 s, 812 K, loss 0.314, ESS 71%, A 1.20%"
    assert describe_record(record).split() == shown.split()
    assert [format_duration(s) for s in (5, 61, 7260)] == ["5 s", "1 min 01 s", "2 h 01 min"]
    assert list(shown_steps(range(3), "steps")) == [0, 1, 2]


def test_an_energy_that_openmm_does_not_confirm_is_not_used(perfect, generated):
    free_energies = generated.free_energy(BASINS)
    for difference in (1.0, math.inf):
        judged = final_verdict(generated, free_energies, None, {}, Recheck(1000, difference, "Reference"))
        assert judged.verdict == "do not use"


def test_a_reference_without_round_trips_certifies_nothing(perfect, generated):
    sampled = replace(as_reference(perfect.sample(3000)), round_trips=0)
    found = compare(perfect, generated, sampled, BASINS)
    judged = final_verdict(generated, generated.free_energy(BASINS), found, {}, GOOD)
    assert judged.verdict == UNCHECKED
    assert "no replica" in judged.reason
