"""The molecules of the paper run again: force field, modes, populations, weights, claims and the whole way in small."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openmm import app, unit
from signals import interrupted_when_asked
from small_molecules import DATA, small_molecule

from boltzgen.cli import main
from boltzgen.collective_variables import parse_basin
from boltzgen.energy import CompiledPotential, FunctionPotential, OpenMMPotential
from boltzgen.ensemble import Ensemble
from boltzgen.errors import CheckpointError, PotentialError, StructureError
from boltzgen.interrupts import RunInterrupted
from boltzgen.placement import hydrogen_density
from boltzgen.reproduce import beyond, butane, dialanine, heavy_atoms, hydrogens
from boltzgen.reproduce.claims import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED, examine
from boltzgen.reproduce.curves import Curve, kept_arrays
from boltzgen.reproduce.frames import Frames
from boltzgen.reproduce.heavy_atoms import prepare, spread
from boltzgen.reproduce.hydrogen_bias import (
    equation_32,
    harmonic_weights,
    internal_generator,
    partition_function_weights,
)
from boltzgen.reproduce.molecule_curves import checkpoints_in, cloud_of, measure, oriented_data, refine_all
from boltzgen.reproduce.rest import rest

SMALL = butane.SETTINGS["quick"].shortened(1e-6)

# Figures as the paper has them, and for each claim some that contradict it.
BUTANE = {
    **{f"{name}.asymmetry": 0.4 for name in ("solid", "dashed")},
    **{f"{name}.asymmetry_error": 0.3 for name in ("solid", "dashed")},
    "solid": 28.0,
    "solid.error": 0.3,
    "dashed": 22.0,
    "dashed.error": 0.3,
    "start.spread": 0.02,
    "start.gauche": 27.0,
    "start.surprise": -38.0,
    "start.energy_90": 15.0,
    "kl-x.spread": 0.5,
    "kl-x.gauche": 0.1,
    "kl-x.surprise": 400.0,
    "kl-z-df.spread": 0.022,
    "kl-z-df.gauche": 26.0,
    "kl-z-df.gauche+": 13.0,
    "kl-z-df.gauche-": 13.0,
    "kl-z-df.energy_90": 14.0,
    "l2+.gauche+": 11.0,
    "l2+.gauche-": 11.0,
}
AGAINST_BUTANE = {
    "gauche by symmetry": {"dashed.asymmetry": 1.0},
    "KL_x expands": {"kl-x.spread": 0.03},
    "KL_x loses the minor modes": {"kl-x.gauche": 5.0},
    "explosion of U_G": {"kl-x.surprise": -30.0},
    "KL_z data-free does not explore": {"kl-z-df.spread": 0.1},
    "KL_z data-free keeps the modes": {"kl-z-df.gauche-": 2.0},
    "KL_z data-free stays low": {"kl-z-df.energy_90": 40.0},
    "KL_z data-free does not converge": {"kl-z-df.gauche": 22.5},
    "L2+ keeps the modes": {"l2+.gauche+": 1.0},
}
DIALANINE = {
    "solid": 6.0,
    "solid.error": 0.1,
    "dashed": 1.21,
    "dashed.error": 0.05,
    "eq32.effective": 900.0,
    "eq32": 1.21,
    "eq32.error": 0.1,
    "unpenalised": 1.25,
    "unpenalised.error": 0.05,
    "start.minor": 6.0,
    "start.energy_90": 5.0,
    "kl-x.minor": 0.0,
    "kl-z-df.minor": 0.0,
    "l2+.minor": 1.2,
    "kl-z-df.highest": 100.0,
    "l2+.highest": 6.0,
    "l2+attached.highest": 300.0,
    "log-variance.highest": 300.0,
}
AGAINST_DIALANINE = {
    "bias of the hydrogens": {"dashed": 5.9},
    "equation 32": {"eq32.effective": 1.2},
    "KL_x collapses": {"kl-x.minor": 1.0},
    "KL_z data-free loses the mode": {"kl-z-df.minor": 0.6},
    "KL_z data-free is unstable": {"kl-z-df.highest": 7.0},
    "L2+ keeps the mode": {"l2+.minor": 0.1},
    "L2+ converges": {"l2+.minor": 6.0},
    "L2+ is stable": {"l2+.highest": 90.0},
    "L2+ without detach is unstable": {"l2+attached.highest": 6.0},
    "L2+ without mask is unstable": {"log-variance.highest": 6.0},
}
BEYOND = {
    **{f"{kind}.{what}": 0.8 for kind in beyond.KINDS for what in ("start", "true")},
    "internal": 0.75,
    "cartesian": 0.85,
    "common": 20.0,
    "internal.evaluations": 0.0,
    "internal.seconds": 0.0,
    "cartesian.evaluations": 1e4,
    "cartesian.seconds": 9.0,
}
AGAINST_BEYOND = {
    "internal to the true share": {"internal": 0.4},
    "cartesian to the true share": {"cartesian": 1.2},
    "fewer evaluations": {"internal.evaluations": 2e4},
}
HYDROGENS = {
    "butane.boltzmann": 30.0,
    "butane.change": -6.0,
    "butane.change_error": 0.3,
    "dialanine.boltzmann": 6.0,
    "dialanine.change": -4.8,
    "dialanine.change_error": 0.1,
    **{f"{name}.{what}": 1000.0 for name in hydrogens.CASES for what in ("effective", "z_h", "n")},
}
AGAINST_HYDROGENS = {
    "butane changes": {"butane.change": 0.5},
    "dialanine loses its minor mode": {"dialanine.change": -2.0},
    **{f"equation 32 for {name}": {f"{name}.effective": 3.0} for name in hydrogens.CASES},
}
CLAIMS = [
    (claim, figures, against[claim.key])
    for claims, figures, against in (
        (butane.CLAIMS, BUTANE, AGAINST_BUTANE),
        (dialanine.CLAIMS, DIALANINE, AGAINST_DIALANINE),
        (beyond.CLAIMS, BEYOND, AGAINST_BEYOND),
        (hydrogens.CLAIMS, HYDROGENS, AGAINST_HYDROGENS),
    )
    for claim in claims
]


@pytest.mark.parametrize(("claim", "figures", "against"), CLAIMS, ids=lambda part: getattr(part, "key", ""))
def test_a_claim_that_figures_contradict_is_not_reproduced(claim, figures, against):
    (agreed,) = examine([claim], {0: figures, 1: figures})
    (contradicted,) = examine([claim], {0: figures, 1: figures | against})
    (lost,) = examine([claim], {0: figures, 1: figures | dict.fromkeys(claim.shown, math.nan)})
    assert agreed.verdict == REPRODUCED
    assert contradicted.verdict == NOT_REPRODUCED
    assert lost.verdict == NOT_DECIDED


@pytest.mark.parametrize("key", ["KL_x collapses", "KL_z data-free loses the mode"])
def test_a_mode_that_the_pre_training_lacks_is_not_lost(key):
    (claim,) = (claim for claim in dialanine.CLAIMS if claim.key == key)
    (finding,) = examine([claim], {0: DIALANINE | {"start.minor": 0.0}})
    assert finding.verdict == NOT_REPRODUCED


@pytest.fixture(scope="module")
def heavy():
    return prepare(butane.BUTANE, SMALL, lambda name: None, lambda line: None)


def test_butane_has_the_parameters_of_cgenff(heavy):
    """The residue that is added to charmm36_2024.xml against the one that OpenMM has in charmm36.xml."""
    other = CompiledPotential(small_molecule("butane"))
    noise = torch.randn(5, 14, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.as_tensor(heavy.data.positions[:5]).double() + 0.01 * noise
    terms, expected = heavy.potential.terms(x), other.terms(x)
    for name in terms.keys() | expected.keys():  # a force without terms is in one of the files only
        zero = torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(terms.get(name, zero), expected.get(name, zero), rtol=0, atol=1e-9)
    torch.testing.assert_close(heavy.potential(x), OpenMMPotential(heavy.molecule)(x), rtol=0, atol=1e-6)
    assert "par_all36m_prot.prm" in str(heavy.molecule.report())
    assert heavy.atoms.tolist() == [3, 6, 9, 13]


def test_modes_of_butane_are_mirror_images():
    heavy = torch.randn(500, 4, 3, generator=torch.Generator().manual_seed(0))
    modes = {name: mode(heavy) for name, mode in butane.BUTANE.modes.items()}
    mirrored = {name: mode(heavy * torch.tensor([1.0, 1.0, -1.0])) for name, mode in butane.BUTANE.modes.items()}
    assert torch.equal(sum(inside.int() for inside in modes.values()), torch.ones(500, dtype=torch.int))
    assert torch.equal(modes["gauche+"], mirrored["gauche-"])
    assert torch.equal(modes["anti"], mirrored["anti"])


def test_torsions_of_dialanine_are_those_of_the_molecule(dipeptide):
    rng = np.random.default_rng(0)
    structure = dipeptide.positions.value_in_unit(unit.nanometer)
    positions = torch.as_tensor(structure + 0.03 * rng.standard_normal((200, 22, 3)))
    positions[:100] *= torch.tensor([1.0, 1.0, -1.0])  # phi of either sign
    atoms = positions[:, dipeptide.heavy_atoms]
    inside = parse_basin("0 < phi < 150", dipeptide).contains(positions)
    assert torch.equal(dialanine.DIALANINE.modes["minor"](atoms), inside)
    assert 0 < int(inside.sum()) < 200
    known = dipeptide.torsions
    for name, mine in (("phi", dialanine.PHI), ("psi", dialanine.PSI)):
        assert [int(dipeptide.heavy_atoms[i]) for i in mine] == list(known[name])


def frames(weights, groups):
    n = len(weights)
    return Frames(np.zeros((n, 1, 3)), np.zeros(n), np.log(weights), np.asarray(groups), 0, 0.0, 0.0)


def test_share_of_weighted_frames_and_its_error():
    inside = np.array([True, False, True, False])
    plain = frames(np.ones(4), [0, 0, 1, 1]).share(inside)
    assert plain.percent == pytest.approx(50)
    assert plain.error == pytest.approx(0)  # either ladder has a half
    weighted = frames(np.array([3.0, 1.0, 1.0, 3.0]), [0, 0, 1, 1]).share(inside)
    assert weighted.percent == pytest.approx(50)
    assert weighted.error == pytest.approx(25)  # of 75 % and 25 %: their deviation over the root of two
    assert frames(np.ones(4), [0, 0, 1, 1]).share(inside, np.log([3.0, 1.0, 3.0, 1.0])).percent == pytest.approx(75)


def test_starts_have_the_shares_of_the_frames(heavy):
    """With the weights of the frames, and without them for walkers under their bias."""
    positions = heavy.data.positions[:1].repeat(10, 0)
    positions[:3] *= np.array([1.0, 1.0, -1.0])  # one angle, of either sign
    positions[:, :, 0] += np.arange(10)[:, None]
    turned = replace(
        heavy.data,
        positions=positions,
        log_weights=np.log([9.0] * 3 + [1.0] * 7),
        energies=np.zeros(10),
        groups=np.arange(10),
    )
    mode = lambda atoms: butane.dihedral(atoms) > 0
    known = replace(heavy, case=replace(heavy.case, modes={"plus": mode}))
    inside = mode(known.heavy(turned)).numpy()
    assert inside.sum() in (3, 7)
    weighted = turned.share(inside).percent / 100
    for n, by_weight, share in ((34, True, weighted), (10, False, inside.mean())):
        starts = torch.as_tensor(spread(known, turned, n, weighted=by_weight)[:, heavy.atoms])
        assert mode(starts).double().mean().item() == pytest.approx(share, abs=1e-6)
    chosen = torch.as_tensor(spread(known, turned, 34, ("plus", 0.5))[:, heavy.atoms])
    assert mode(chosen).double().mean().item() == pytest.approx(0.5, abs=1e-6)
    nowhere = replace(known, case=replace(known.case, modes={"plus": lambda atoms: mode(atoms) & ~mode(atoms)}))
    with pytest.raises(StructureError, match="are in the mode 'plus'"):
        spread(nowhere, turned, 34, ("plus", 0.5))


def test_penalty_weights_frames_by_its_integral_over_rotations(heavy):
    plain, penalised = heavy.shares(heavy.data), heavy.shares(heavy.data, 1000.0)
    assert sum(share.percent for share in penalised.values()) == pytest.approx(100)
    atoms, penalty = heavy.heavy(heavy.data), heavy.penalty(1000.0)
    ensemble = Ensemble(
        positions=heavy.data.positions,
        log_weights=penalty.log_rotation_integral(atoms).numpy(),
        kT=heavy.kT,
    )
    inside = butane.BUTANE.modes["anti"](atoms).numpy()
    assert penalised["anti"].percent == pytest.approx(100 * ensemble.weights @ inside, rel=1e-6)
    assert plain["anti"].percent == pytest.approx(100 * inside.mean())
    assert heavy.penalty(0.0) is None


def test_equation_32_has_equal_weights_where_hydrogens_are_at_their_minimum_only(heavy):
    energies = heavy.placed(heavy.heavy(heavy.minimized).double()).numpy()
    at_minimum = replace(heavy, true=replace(heavy.minimized, energies=energies))
    estimate = equation_32(at_minimum)
    assert estimate.effective == pytest.approx(estimate.n)
    assert equation_32(heavy).effective < 0.5 * len(heavy.true.energies)


def on_springs(heavy, stiffness, offset):
    """U/kT of hydrogens on springs: their partition function is known, (2 pi / stiffness)^(3 n / 2) for n of them."""
    moving = np.setdiff1d(np.arange(heavy.molecule.n_atoms), heavy.atoms)

    def energy(positions):
        atoms = positions[:, heavy.atoms]
        at_rest = heavy.placed.all_atoms(atoms).double() + offset * torch.cos(butane.dihedral(atoms))[:, None, None]
        distances = (positions - at_rest)[:, moving].square().sum((1, 2))
        return heavy.kT * stiffness(atoms.double()) * distances / 2

    potential = FunctionPotential(energy, heavy.molecule.n_atoms)
    atoms = heavy.heavy(heavy.true).double()
    at_h = potential(heavy.placed.all_atoms(atoms).double()) / heavy.kT
    return potential, (1.5 * len(moving) * stiffness(atoms).log() - at_h).detach().numpy()


def test_harmonic_weights_of_hydrogens_on_springs(heavy):
    """Stiffness, and how far h(x_C) is from the minimum, depend on the heavy atoms."""
    potential, expected = on_springs(heavy, lambda atoms: 400 * (2 + torch.cos(butane.dihedral(atoms))), offset=0.01)
    weights = harmonic_weights(replace(heavy, potential=potential))
    np.testing.assert_allclose(weights - weights[0], expected - expected[0], atol=1e-3)
    assert np.ptp(expected) > 1
    upside_down = FunctionPotential(lambda x: -potential(x), heavy.molecule.n_atoms)
    assert np.isnan(harmonic_weights(replace(heavy, potential=upside_down))).all()


def test_partition_function_is_exact_on_average_from_any_number_of_draws(heavy):
    """A factor of which the density of the hydrogens knows nothing: 1 / Z_H on average, from 2 draws as from 16."""
    internal = internal_generator(heavy, 60, 64, 0, None)
    few = replace(heavy, true=heavy.true.rows(np.zeros(4000, dtype=int)))
    density, rng = hydrogen_density(internal), torch.Generator().manual_seed(0)
    atoms = heavy.heavy(few.true).to(next(density.parameters()))
    with torch.no_grad():
        drawn, other = (density.sample(atoms, rng)[0] for _ in range(2))
    stretch = lambda x: torch.cos(200 * x.double().sum((1, 2)))  # U = -kT log q - stretch: Z_H is the mean of its exp

    def energy(positions):
        return -heavy.kT * (density.log_prob(positions.to(atoms)).double() + stretch(positions))

    potential = FunctionPotential(energy, heavy.molecule.n_atoms)
    accepted = torch.rand(4000, generator=rng) < (stretch(drawn) - 1).exp()  # exact samples of exp(-U/kT) / Z_H
    positions = drawn[accepted].double().numpy()
    n = len(positions)
    frames = replace(
        few.true.rows(np.arange(n)), positions=positions, energies=potential(torch.as_tensor(positions)).numpy()
    )
    log_z = math.log(float(stretch(other).exp().mean()))
    whole = replace(heavy, true=frames, potential=potential)
    for n_draws in (2, 16):
        weights = partition_function_weights(whole, internal, n_draws)
        inverse = np.exp(weights + heavy.placed(heavy.heavy(frames).double()).numpy() / heavy.kT + log_z)
        assert inverse.mean() == pytest.approx(1, abs=4 * inverse.std() / math.sqrt(n) + 0.05)


def test_change_of_a_share_cancels_what_the_frames_have_in_common():
    rng = np.random.default_rng(0)
    n, groups = 4000, 40
    drift = np.repeat(rng.uniform(0.1, 0.9, groups), n // groups)  # groups differ: large error of the share
    inside = rng.random(n) < drift
    frames = Frames(np.zeros((n, 1, 3)), np.zeros(n), np.zeros(n), np.repeat(np.arange(groups), n // groups), 0, 0, 0)
    more = np.where(inside, math.log(1.1), 0.0)
    before, after, change = frames.share(inside), frames.share(inside, more), frames.change(inside, more)
    assert change.percent == pytest.approx(after.percent - before.percent)
    assert change.error < 0.1 * before.error
    resampled = []
    for seed in range(400):
        chosen = np.random.default_rng(seed).integers(0, groups, groups)
        rows = (chosen[:, None] * (n // groups) + np.arange(n // groups)).ravel()
        resampled.append(frames.rows(rows).share(inside[rows], more[rows]).percent - 100 * inside[rows].mean())
    assert change.error == pytest.approx(np.std(resampled), rel=0.2)
    assert frames.change(inside, np.zeros(n)).error == 0


def test_where_l2_plus_rests():
    """q is uniform, r takes the values 0, 1 and 4; K, of a whole batch, is 5/3, or less where clashes are left out."""

    class Flow:
        def sample_and_log_prob(self, n, rng):
            x = torch.rand(n, 1, 3, generator=rng, dtype=torch.float64)
            return x, torch.zeros(n, dtype=torch.float64)

    def energy(x):
        return -torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)[(3 * x[:, 0, 0]).long()]

    generator = SimpleNamespace(flow=Flow(), reduced_energy=energy, device="cpu")
    high, half = lambda x: x[:, 0, 0] > 2 / 3, lambda x: x[:, 0, 1] < 0.5
    middle = lambda x: (x[:, 0, 0] > 1 / 3) & ~high(x)
    found = rest(generator, high, 50_000, 500)
    weight = math.exp(4) / (1 + math.e + math.exp(4))
    assert abs(found.samples.percent - 100 / 3) < 4 * found.samples.error < 2
    assert abs(found.reweighted.percent - 100 * weight) < 4 * found.reweighted.error < 2
    assert found.raised.percent == pytest.approx(100)  # K = 5/3 is above 1
    assert rest(generator, half, 50_000, 500).raised.percent == pytest.approx(50, abs=2)
    assert found.bad == found.bad_elsewhere == found.spread == 0
    assert found.spread_elsewhere == pytest.approx(0.5, abs=0.01)

    # Where half of the samples with r = 4 clash, K = (0 + 1 + 2) / 2.5 = 1.2; where all do, 1/2, and r = 1 is raised.
    clashing = lambda share: lambda x: torch.where(high(x) & (x[:, 0, 2] < share), torch.inf, energy(x))
    half_of_them = rest(SimpleNamespace(flow=Flow(), reduced_energy=clashing(0.5), device="cpu"), high, 50_000, 500)
    assert half_of_them.bad == pytest.approx(50, abs=2)
    assert half_of_them.spread == 0  # of those that do not clash
    assert half_of_them.samples.percent == pytest.approx(100 / 3, abs=1)
    assert half_of_them.raised.percent == pytest.approx(100)
    all_of_them = rest(SimpleNamespace(flow=Flow(), reduced_energy=clashing(2.0), device="cpu"), middle, 50_000, 500)
    assert all_of_them.raised.percent == pytest.approx(100)
    assert all_of_them.bad_elsewhere == pytest.approx(50, abs=2)
    undefined = lambda x: torch.where(half(x), torch.nan, clashing(2.0)(x))
    some = rest(SimpleNamespace(flow=Flow(), reduced_energy=undefined, device="cpu"), middle, 50_000, 500)
    assert some.raised.percent == pytest.approx(100)


def test_figures_of_a_generator(heavy):
    refined = refine_all(heavy, SMALL, butane.CURVES[:1], 0, lambda name: None, lambda line: None)
    start = refined.generators["start"]
    data = oriented_data(heavy, SMALL)
    found = measure(heavy, start, data, 400)
    assert found["lost"] == 0
    assert found["anti"] + found["gauche+"] + found["gauche-"] == pytest.approx(100)
    samples = cloud_of(heavy, start, n=400)
    assert found["energy"] == pytest.approx(np.sort(samples.energy)[199])
    centre = samples.heavy.mean(1)
    assert found["spread"] == pytest.approx(math.sqrt(centre.var(0).sum()), rel=1e-6)
    assert found["surprise"] == pytest.approx(cloud_of(heavy, start, data).surprise.mean(), rel=1e-6)
    # The refinement has no penalty; its hydrogens' network is held, and its energy is that of the weights but for caps.
    assert refined.generators["kl-x"].alignment is None
    assert start.alignment.strength == 1000.0
    x = data[:20].double()
    torch.testing.assert_close(heavy.trained_on(x), heavy.placed(x), rtol=1e-9, atol=1e-6)


def test_kept_arrays_belong_to_their_settings(tmp_path):
    path = tmp_path / "made.pt"
    first = kept_arrays(path, {"seed": 0}, lambda: {"x": np.arange(3)})
    again = kept_arrays(path, {"seed": 0}, lambda: pytest.fail("made again"))
    assert np.array_equal(first["x"], again["x"])
    with pytest.raises(CheckpointError, match="seed"):
        kept_arrays(path, {"seed": 1}, dict)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupted_again_and_again_it_comes_to_the_same(tmp_path, monkeypatch):
    """Ctrl-C at every fourth look for one: learning the bias, sampling, placement."""
    settings = dialanine.SETTINGS["quick"].shortened(1e-6)

    def prepared(folder):
        return prepare(dialanine.DIALANINE, settings, checkpoints_in(tmp_path / folder, ""), lambda line: None)

    whole = prepared("whole")
    again, stopped_in = None, []
    while again is None:
        assert len(stopped_in) < 100
        with monkeypatch.context() as patched:
            patched.setattr("boltzgen.reproduce.curves.Interrupts", interrupted_when_asked(4))
            try:
                again = prepared("part")
            except RunInterrupted as stop:
                stopped_in.append(stop.checkpoint)
    stages = {" ".join(path.stem.split("-")[::2][:2]) for path in stopped_in}  # the digest of their settings left out
    assert stages >= {"reference learning", "reference spreading", "minimized parallel", "network"}
    for sampled in ("true", "data", "minimized"):
        mine, other = getattr(again, sampled), getattr(whole, sampled)
        for values in ("positions", "energies", "log_weights", "grid"):
            assert np.array_equal(getattr(mine, values), getattr(other, values))
        assert mine.evaluations >= other.evaluations
    for mine, other in zip(again.placement.flow.parameters(), whole.placement.flow.parameters(), strict=True):
        assert torch.equal(mine, other)
    left = {path.stem for path in stopped_in[0].parent.iterdir()}
    assert left == {"reference", "data", "minimized", "network"}


def test_what_was_made_from_other_data_is_refused(tmp_path, monkeypatch):
    """The reference is gone on with; what was trained or sampled from the data is not."""
    monkeypatch.setattr(heavy_atoms, "spread", lambda known, frames, *how, **options: frames.positions[:8])
    checkpoint = checkpoints_in(tmp_path, "butane")
    prepare(butane.BUTANE, SMALL, checkpoint, lambda line: None)
    other = replace(SMALL, data_share=("anti", 0.5))
    with pytest.raises(CheckpointError, match=r"data\.pt .*start is …None, .* there and …\('anti', 0\.5\), .* here"):
        prepare(butane.BUTANE, other, checkpoint, lambda line: None)
    (tmp_path / "checkpoints" / "butane" / "data.pt").unlink()
    with pytest.raises(CheckpointError, match=r"network\.pt .*data is"):
        prepare(butane.BUTANE, other, checkpoint, lambda line: None)


def test_sampling_that_hardly_moves_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("boltzgen.reproduce.frames.LEAST_ACCEPTED", 1.1)
    with pytest.raises(PotentialError, match=r"% of the trajectories of Sampling.* were accepted: shorter steps"):
        prepare(butane.BUTANE, SMALL, checkpoints_in(None, ""), lambda line: None)


def test_first_step_with_an_ess():
    curve = Curve([0, 10, 20], {"ess": [1.0, 5.0, 9.0]}, 1.0)
    assert beyond.first_reaching(curve, 5.0) == 10
    assert beyond.first_reaching(curve, 9.5) is None


@pytest.mark.parametrize(("name", "module"), [("butane", butane), ("beyond", beyond), ("hydrogens", hydrogens)])
def test_command_writes_what_it_says(name, module, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(module.SETTINGS, "quick", module.SETTINGS["quick"].shortened(1e-6))
    assert main(["reproduce", name, "--seeds", "0", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert {key: written[key] for key in said} == said
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / f"{name}.md").read_text()
    assert [finding["key"] for finding in written["findings"]] == [claim.key for claim in module.CLAIMS]
    for claim in module.CLAIMS:
        assert claim.paper in table
    for curve in written.get("curves", {"0": {}})["0"].values():
        assert curve["steps"][-1] == 4


def test_the_structure_is_the_one_of_the_tests():
    """One molecule in two folders: neither may change alone."""
    mine, other = (
        app.PDBFile(str(path)) for path in (DATA.parents[1] / "systems/butane.pdb", DATA / "cgenff/butane.pdb")
    )
    assert np.allclose(mine.positions.value_in_unit(unit.nanometer), other.positions.value_in_unit(unit.nanometer))
