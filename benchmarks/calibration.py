"""Calibration: how often nominal 95 % intervals hold the truth, and how often verdicts are right, on analytic targets.

    python benchmarks/calibration.py [--repetitions 2000] [--seed 0] [--only NAME] [--write]

Every estimator of `boltzgen.free_energy`, and the samplers that start from a generator, are repeated on a Gaussian
mixture, a harmonic molecule and a many-well target, with new samples each time. Counted is the share of repetitions
whose interval holds the true value, which comes from closed forms or quadrature. Profiles count all cells in which ten
samples or more are expected. Verdicts: "usable" where the generator covers every mode, and "do not use" where one mode
was taken out of the generator; reference samples are given to both.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import openmm
import pymbar
import scipy
import torch
from exactness import SOFT, harmonic_molecule
from openmm import app, unit
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import beta as beta_distribution
from scipy.stats import norm
from torch import Tensor, nn

import boltzgen
from boltzgen import free_energy as fe
from boltzgen.diagnostics import coverage, verdict
from boltzgen.energy import FunctionPotential, GaussianMixture, ManyWell
from boltzgen.ensemble import Ensemble
from boltzgen.free_energy.acceptance_ratio import log_z_bar
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.sampling import annealed_importance, flow_chains

RESULT = Path(__file__).resolve().parent / "results" / "calibration.txt"
FEWEST_EXPECTED = 10  # samples in a cell of a profile
TEMPERATURE_RATIO = 1.25


class MixtureFlow(nn.Module):
    """A flow whose density is a Gaussian mixture: exact samples of a target that is not quite the one asked for."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.nothing = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def sample_and_log_prob(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        x = self.mixture.sample(n, generator)
        return x, self.mixture.log_prob(x)

    def log_prob(self, positions: Tensor) -> Tensor:
        return self.mixture.log_prob(positions)


@dataclass
class Count:
    """Hits of one estimator: intervals that hold the truth."""

    name: str
    hits: float = 0.0
    n: int = 0
    errors: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, estimate: fe.Estimate, truth: float) -> None:
        self.hits += estimate.low <= truth <= estimate.high
        self.n += 1
        self.errors.append(estimate.value - truth)
        self.widths.append(estimate.half_width)

    def add_share(self, held: np.ndarray) -> None:
        """Of many intervals at once."""
        self.hits += float(np.mean(held))
        self.n += 1

    @property
    def share(self) -> float:
        return self.hits / self.n

    def row(self) -> str:
        low = beta_distribution.ppf(0.025, self.hits, self.n - self.hits + 1) if self.hits else 0.0
        high = beta_distribution.ppf(0.975, self.hits + 1, self.n - self.hits) if self.hits < self.n else 1.0
        spread = ""
        if self.errors:
            finite = np.isfinite(self.widths)
            ratio = np.median(np.array(self.widths)[finite]) / (1.96 * np.std(self.errors))
            spread = f"{np.mean(self.errors) / np.std(self.errors):8.2f} {ratio:8.2f}"
        return f"{self.name:<52} {self.n:5d}  {self.share:.3f}  ({low:.3f} to {high:.3f})  {spread}".rstrip()


Counts = dict[str, Count]


def tally(counts: Counts, name: str, estimate: fe.Estimate, truth: float) -> None:
    counts.setdefault(name, Count(name)).add(estimate, truth)


def first(positions: np.ndarray) -> np.ndarray:
    """The first coordinate of each sample."""
    return positions[:, 0, 0]


def is_right(positions: np.ndarray) -> np.ndarray:
    """Whether the first coordinate is positive."""
    return first(positions) > 0


# --- Gaussian mixture -------------------------------------------------------------------------------------------------

MEANS, SHARES = np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([0.8, 0.2])
WIDE = 1.2


def mixture_generators() -> tuple[BoltzmannGenerator, BoltzmannGenerator, float]:
    """Generators of a mixture and of a narrower, shifted one, and the difference of their free energies."""
    target = GaussianMixture(MEANS, 1.0, SHARES)
    other = GaussianMixture(MEANS + 0.3, 0.9, SHARES[::-1].copy())
    shifted = FunctionPotential(lambda x: other(x) - 1.7, 1, name="shifted mixture", dimension=2)
    proposals = [GaussianMixture(MEANS, WIDE, [0.6, 0.4]), GaussianMixture(MEANS + 0.2, WIDE, [0.4, 0.6])]
    made = [
        BoltzmannGenerator(MixtureFlow(q), u, kT=1.0, seed=i)
        for i, (q, u) in enumerate(zip(proposals, (target, shifted), strict=True))
    ]
    return made[0], made[1], -1.7


def right_share(scale: float = 1.0) -> float:
    """Population of x > 0 of the mixture."""
    return float(SHARES @ norm.sf(-MEANS[:, 0] / scale))


def mixture_moments(ratio: float) -> tuple[float, float, float]:
    """log Z, <u> and <x> of exp(-u/ratio) for the reduced energy u of the mixture, by quadrature on a grid."""
    axis = np.linspace(-12, 12, 961)
    grid = torch.as_tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 2))
    u = GaussianMixture(MEANS, 1.0, SHARES)(grid).numpy()
    w = np.exp(-u / ratio)
    z = w.sum() * (axis[1] - axis[0]) ** 2
    return math.log(z), float(w @ u / w.sum()), float(w @ grid[:, 0, 0].numpy() / w.sum())


def mixture(repetitions: int, seed: int) -> Iterator[Counts]:
    """All estimators that need one or two ensembles of independent samples."""
    n, (one, two, delta) = 600, mixture_generators()
    one.rng.manual_seed(seed)
    two.rng.manual_seed(seed + 1)
    truth = right_share()
    log_odds = -math.log(truth / (1 - truth))
    tail = float(SHARES @ norm.sf(3.0 - MEANS[:, 0]))
    tail_odds = -math.log(tail / (1 - tail))
    edges = np.linspace(-4, 4, 25)
    cells = np.diff(norm.cdf(edges[:, None] - MEANS[:, 0]), axis=0)
    density = -np.log(cells @ SHARES / np.diff(edges))
    grid = np.linspace(-4.5, 4.5, 10)
    along = [np.diff(norm.cdf(grid[:, None] - MEANS[:, k]), axis=0) for k in (0, 1)]
    plane = -np.log(np.einsum("ik,jk,k->ij", along[0], along[1], SHARES) / (grid[1] - grid[0]) ** 2)
    _, u_mean, _ = mixture_moments(1.0)
    hot_log_z, hot_u, hot_x = mixture_moments(TEMPERATURE_RATIO)
    kelvin = TEMPERATURE_RATIO / fe.temperature.GAS_CONSTANT
    centres = np.array([[-2.0, 0.0], [2.0, 1.0]])
    share_of_cluster = cluster_share(centres)
    counts: Counts = {}
    for _ in range(repetitions):
        ens, end = one.sample(n), two.sample(n)
        for interval in ("delta", "bootstrap"):
            options = {"interval": interval, "replicates": 300}
            tally(counts, f"log Z, {interval}", fe.log_z(ens, **options), 0.0)
            tally(counts, f"<x>, {interval}", fe.expectation(ens, first, **options), float(SHARES @ MEANS[:, 0]))
            basin = fe.free_energy_of(ens, is_right(ens.positions), **options)
            tally(counts, f"ΔF of a basin of {truth:.0%}, {interval}", basin, log_odds)
        tally(counts, "P of a region", fe.expectation(ens, is_right), truth)
        rare = fe.free_energy_of(ens, first(ens.positions) > 3.0)
        tally(counts, f"ΔF of a basin of {tail:.1%}", rare, tail_odds)
        labels = np.square(ens.positions[:, 0, None, :] - centres).sum(-1).argmin(1)
        tally(counts, "population of a cluster", fe.populations(ens, labels)["1"], share_of_cluster)
        line = fe.profile(ens, first, bins=24, range=(-4.0, 4.0))
        count_profile(counts, "profile, 24 cells", line, density, n)
        flat = fe.profile(ens, first, second, bins=9, range=[(-4.5, 4.5), (-4.5, 4.5)])
        count_profile(counts, "profile, 9 x 9 cells", flat, plane, n)
        tally(counts, "ΔF one-sided", fe.perturb(ens, two.potential), delta)
        tally(counts, "ΔF by BAR, two generators", fe.bar(ens, end, one.potential, two.potential), delta)
        reference = exact(one.potential, 300, one.rng)
        tally(counts, "log Z by BAR, generator and reference", fe.bar_log_z(one, ens, reference), 0.0)
        hot = fe.at_temperature(ens, kelvin).ensemble
        tally(counts, f"log Z at {TEMPERATURE_RATIO:g} T", hot.log_z, hot_log_z)
        tally(counts, f"<x> at {TEMPERATURE_RATIO:g} T", fe.expectation(hot, first), hot_x)
        parts = fe.decompose(ens)
        tally(counts, "energy U", parts.energy, u_mean)
        tally(counts, "entropy -TS", parts.minus_temperature_entropy, -u_mean)
        tally(counts, f"energy U at {TEMPERATURE_RATIO:g} T", fe.decompose(hot).energy, hot_u / TEMPERATURE_RATIO)
    yield counts


def second(positions: np.ndarray) -> np.ndarray:
    """The second coordinate of each sample."""
    return positions[:, 0, 1]


def cluster_share(centres: np.ndarray) -> float:
    """Population of the points nearer to the second centre: a half-plane, so one normal integral for each component."""
    normal = centres[1] - centres[0]
    middle = 0.5 * (centres[0] + centres[1]) @ normal
    return float(SHARES @ norm.sf((middle - MEANS @ normal) / np.linalg.norm(normal)))


def exact(potential: GaussianMixture, n: int, rng: torch.Generator) -> Ensemble:
    """Independent exact samples, as a reference."""
    x = potential.sample(n, rng)
    return Ensemble(x.numpy(), np.zeros(n), 1.0, energies=potential(x).numpy())


def count_profile(counts: Counts, name: str, profile: fe.Profile, truth: np.ndarray, n: int) -> None:
    volume = np.prod([edges[1] - edges[0] for edges in profile.edges])
    expected = np.exp(-truth) * volume * n >= FEWEST_EXPECTED
    low, high = profile.low + profile.offset, profile.high + profile.offset
    counts.setdefault(name, Count(name)).add_share(((low <= truth) & (truth <= high))[expected])


def multistate(repetitions: int, seed: int) -> Iterator[Counts]:
    """MBAR over two generators and a reference, with the densities of the generators as states."""
    one, two, delta = mixture_generators()
    one.rng.manual_seed(seed + 2)
    two.rng.manual_seed(seed + 3)
    counts: Counts = {}
    for _ in range(repetitions):
        ensembles = [one.sample(200), two.sample(200), exact(one.potential, 100, one.rng)]
        found = fe.mbar(ensembles, [one.potential, two.potential, one.potential], [one, two, None])
        tally(counts, "ΔF by MBAR, two generators and a reference", found.difference(0, 1), delta)
        tally(counts, "absolute F by MBAR", found.difference("q of state 0", 0), 0.0)
    yield counts


# --- samplers that start from a generator -----------------------------------------------------------------------------


def samplers(repetitions: int, seed: int) -> Iterator[Counts]:
    """Particle systems, annealed importance and chains: one long run each, cut into independent repetitions."""
    target = GaussianMixture(MEANS, 1.0, SHARES)
    poor = GaussianMixture([[0.0, 0.5]], 2.5)
    truth, counts = right_share(), {}
    log_odds = -math.log(truth / (1 - truth))
    n_repeats, n_particles, schedule = 20, 24, [0.15, 0.4, 0.7, 1.0]
    for name, below in (("sequential Monte Carlo", 0.7), ("annealed importance sampling", 0.0)):
        for block in blocks(repetitions, 500):
            generator = BoltzmannGenerator(MixtureFlow(poor), target, kT=1.0)
            whole = annealed_importance(
                generator,
                n_particles,
                n_repeats * len(block),
                schedule=schedule,
                resample_below=below,
                n_leapfrog=2,
                seed=seed + block[0],
            )
            for one in pieces(whole, n_repeats * n_particles):
                tally(counts, f"log Z, {name}", one.log_z, 0.0)
                tally(counts, f"ΔF, {name}", fe.free_energy_of(one, is_right(one.positions)), log_odds)
    for name, n_chains, n_rounds in (("40 chains", 40, 60), ("one chain", 1, 2500)):
        for block in blocks(repetitions, 250):
            generator = BoltzmannGenerator(MixtureFlow(poor), target, kT=1.0)
            whole = flow_chains(
                generator, n_chains * len(block), n_rounds, n_local=0, seed=seed + 7 + block[0], burn_in=0.2
            )
            for k in range(len(block)):
                one = whole[(whole.groups >= k * n_chains) & (whole.groups < (k + 1) * n_chains)]
                tally(counts, f"<x>, {name}", fe.expectation(one, first), float(SHARES @ MEANS[:, 0]))
                tally(counts, f"ΔF, {name}", fe.free_energy_of(one, is_right(one.positions)), log_odds)
    yield counts


def blocks(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def pieces(ensemble: Ensemble, size: int) -> Iterator[Ensemble]:
    return (ensemble[start : start + size] for start in range(0, len(ensemble), size))


# --- many-well and harmonic molecule ----------------------------------------------------------------------------------


def many_well_generator(modes: tuple[int, ...] = (0, 1)) -> BoltzmannGenerator:
    """A mixture fitted by eye to four wells side by side, from the modes named of the first coordinate."""
    target = ManyWell(4)
    places, widths = (-1.70, 1.77), (0.30, 0.29)
    combinations = [(a, b) for a in modes for b in (0, 1)]
    share = np.array([1 - target.minor_population, target.minor_population])
    if target.well.left_population < 0.5:
        share = share[::-1]
    means = [[places[a], 0.0, places[b], 0.0] for a, b in combinations]
    scales = [[widths[a], 1.1, widths[b], 1.1] for a, b in combinations]
    q = GaussianMixture(means, np.array(scales), [share[a] * share[b] for a, b in combinations])
    return BoltzmannGenerator(MixtureFlow(q), target, kT=1.0)


def many_well(repetitions: int, seed: int) -> Iterator[Counts]:
    """Four modes in four dimensions."""
    generator = many_well_generator()
    target = generator.potential
    generator.rng.manual_seed(seed + 4)
    left = target.well.left_population
    mean = quad(
        lambda x: x * math.exp(-float(target.well.energy(torch.tensor(x))) - target.well.log_z),
        -4,
        4,
        points=[-1.7, 0.0, 1.7],
        limit=200,
    )[0]
    counts: Counts = {}
    for _ in range(repetitions):
        ens = generator.sample(1000)
        tally(counts, "log Z", ens.log_z, target.log_z)
        tally(
            counts,
            "ΔF of a well",
            fe.free_energy_of(ens, first(ens.positions) < target.barrier),
            -math.log(left / (1 - left)),
        )
        tally(counts, "<x>", fe.expectation(ens, first), mean)
    yield counts


def carbon_chain() -> Molecule:
    """Five carbons on springs."""
    topology = app.Topology()
    residue = topology.addResidue("TOY", topology.addChain("A"))
    atoms = [topology.addAtom(f"C{i}", app.Element.getBySymbol("C"), residue) for i in range(5)]
    system, stretch = openmm.System(), openmm.HarmonicBondForce()
    for i, atom in enumerate(atoms):
        system.addParticle(atom.element.mass)
        if i:
            topology.addBond(atoms[i - 1], atom)
            stretch.addBond(i - 1, i, 0.153, 2e5)
    bend = openmm.HarmonicAngleForce()
    for i in range(3):
        bend.addAngle(i, i + 1, i + 2, math.radians(112), 400.0)
    system.addForce(stretch)
    system.addForce(bend)
    zigzag = np.array([[0.127 * i, 0.085 * (i % 2), 0.02 * i * (4 - i)] for i in range(5)])
    return Molecule.from_openmm(topology, system, zigzag * unit.nanometer, 300 * unit.kelvin)


def harmonic(repetitions: int, seed: int) -> Iterator[Counts]:
    """Five carbons: harmonic bonds and angles, and a cosine for each torsion; the generator is untrained."""
    source = carbon_chain()
    chart = BoltzmannGenerator.for_molecule(source).coordinates
    molecule, log_z = harmonic_molecule(source, chart)
    generator = BoltzmannGenerator.for_molecule(molecule, seed=seed)
    row = next(row for row in chart.rows if row.kind == "free torsion")
    positions = torch.as_tensor(np.array(source.positions._value))[None]
    centre = math.degrees(float(chart.internal.to_internal(positions)[0][0, chart.rows.index(row)]))
    stiffness = SOFT / source.kT
    torsion = f"torsion({', '.join(str(atom) for atom in row.atoms)})"
    # Population of the half circle about the centre under exp(k cos phi).
    inner = quad(lambda a: math.exp(stiffness * (math.cos(a) - 1)), -math.pi / 2, math.pi / 2)[0]
    half = inner / (2 * math.pi * ive(0, stiffness))
    region = f"{centre - 90:.6f} < {torsion} < {centre + 90:.6f}"
    counts: Counts = {}
    n = 600
    for block in blocks(repetitions, 100):
        whole = generator.sample(n * len(block))
        for ens in pieces(whole, n):
            tally(counts, "log Z", ens.log_z, log_z)
            angle = fe.expectation(ens, torsion)
            wrapped = (angle.value - centre + 180) % 360 - 180
            shift = wrapped - (angle.value - centre)
            tally(
                counts,
                "circular mean of a torsion",
                replace(angle, value=angle.value + shift, low=angle.low + shift, high=angle.high + shift),
                centre,
            )
            tally(counts, "ΔF of a region", ens.free_energy({"near": region})["near"], -math.log(half / (1 - half)))
    yield counts


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(repetitions: int, seed: int) -> Iterator[str]:
    """How often a good generator is usable, and one that lacks a mode is refused."""
    whole = mixture_generators()[0]
    target = whole.potential
    lost = {
        f"mixture without its mode of {SHARES[1 - kept]:.0%}": BoltzmannGenerator(
            MixtureFlow(GaussianMixture(MEANS[kept : kept + 1], WIDE)), target, kT=1.0
        )
        for kept in (0, 1)
    }
    wells = {
        f"many-well without its {side} wells": many_well_generator((kept,))
        for kept, side in ((0, "right"), (1, "left"))
    }
    # Twice too wide: each mode is covered to 0.57, which still holds.
    broad = BoltzmannGenerator(MixtureFlow(GaussianMixture(MEANS, 2.0, SHARES)), target, kT=1.0)
    cases = [("mixture", whole, "usable"), ("broad mixture", broad, "usable")]
    cases += [("many-well", many_well_generator(), "usable")]
    cases += [(name, generator, "do not use") for name, generator in (lost | wells).items()]
    for name, generator, wanted in cases:
        generator.rng.manual_seed(seed + 11)
        ess = generator.sample(200_000).ess_fraction
        barrier = getattr(generator.potential, "barrier", 0.0)
        found = [judge(generator, barrier) for _ in range(repetitions)]
        share = np.mean([one == wanted for one in found])
        yield f"{name:<44} {ess:8.2f}  {wanted:<12} {share:8.3f}"


def judge(generator: BoltzmannGenerator, barrier: float) -> str:
    """The verdict on 1,000 samples with 500 exact reference samples, by the two sides of the barrier."""
    ens = generator.sample(1000)
    x = generator.potential.sample(500, generator.rng)
    log_weights = generator.log_weights_of(x.numpy(), generator.potential(x).numpy())
    ones = np.ones(len(x))
    log_z = log_z_bar(ens.log_weights, log_weights, ones)
    left = x[:, 0, 0].numpy() < barrier
    sides = {"left": coverage(log_z - log_weights, left, ones), "right": coverage(log_z - log_weights, ~left, ones)}
    return verdict(ens.log_weights, coverages=sides).verdict


# --- table ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[int, int], Iterator[Counts]]] = {
    "Gaussian mixture, 600 samples": mixture,
    "Gaussian mixture, MBAR": multistate,
    "Gaussian mixture, samplers from a poor generator": samplers,
    "many-well, 1,000 samples": many_well,
    "harmonic molecule, 600 samples": harmonic,
}


def main() -> None:
    """Repeat, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a table")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULT.name}")
    options = parser.parse_args()
    begin, lines = time.time(), [header(options)]

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    print(lines[0])
    for title, part in PARTS.items():
        if options.only in title:
            say(f"\n{title}\n{'estimator':<52} {'n':>5}  held   (95 % of that)     bias/sd  width/sd")
            for counts in part(options.repetitions, options.seed):
                for count in counts.values():
                    say(count.row())
    if options.only in "verdicts":
        say(
            "\nverdicts on 1,000 samples with 500 reference samples\n"
            f"{'generator':<44} {'true ESS':>8}  {'right':<12} {'given':>8}"
        )
        for row in verdicts(options.repetitions, options.seed):
            say(row)
    say(f"\n{time.time() - begin:.0f} s")
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def header(options: argparse.Namespace) -> str:
    """Command, versions, date and seed."""
    command = " ".join(["python", "benchmarks/calibration.py", *sys.argv[1:]])
    modules = (boltzgen, torch, np, scipy, openmm, pymbar)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    return f"{command}\n{datetime.date.today()}; {versions}; seed {options.seed}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
