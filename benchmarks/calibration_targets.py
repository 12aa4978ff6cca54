"""Targets whose answers are known, with generators that are not quite right, for the calibration of estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from exactness import SOFT, harmonic_molecule
from openmm import app, unit
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import norm
from torch import Tensor, nn

from boltzgen.energy import FunctionPotential, GaussianMixture, ManyWell
from boltzgen.ensemble import Ensemble
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

MEANS, SHARES = np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([0.8, 0.2])
WIDE = 1.2


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


def first(positions: np.ndarray) -> np.ndarray:
    """The first coordinate of each sample."""
    return positions[:, 0, 0]


def is_right(positions: np.ndarray) -> np.ndarray:
    """Whether the first coordinate is positive."""
    return first(positions) > 0


def second(positions: np.ndarray) -> np.ndarray:
    """The second coordinate of each sample."""
    return positions[:, 0, 1]


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


def curved_generator() -> BoltzmannGenerator:
    """Couplings with weights drawn at random: a smooth curved map of one normal distribution, over both modes."""
    torch.manual_seed(3)
    flow = CartesianFlow((1, 2), centre=torch.tensor([[0.0, 0.5]]), factor=2.5, n_rounds=2, n_hidden=16).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return BoltzmannGenerator(flow, GaussianMixture(MEANS, 1.0, SHARES), kT=1.0)


def right_share(scale: float = 1.0) -> float:
    """Population of x > 0 of the mixture."""
    return float(SHARES @ norm.sf(-MEANS[:, 0] / scale))


def mixture_moments(ratio: float) -> tuple[float, float, float, float, float]:
    """Of exp(-u/ratio) for the reduced energy u of the mixture, by quadrature on a grid with no point at x = 0.

    log Z, <u>, <x>; and of x > 0 against all else the difference of <u>, and -ln of the odds.
    """
    axis = np.linspace(-12, 12, 960)
    grid = torch.as_tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 2))
    u = GaussianMixture(MEANS, 1.0, SHARES)(grid).numpy()
    w, x = np.exp(-u / ratio), grid[:, 0, 0].numpy()
    z = w.sum() * (axis[1] - axis[0]) ** 2
    right, left = (np.average(u[side], weights=w[side]) for side in (x > 0, x < 0))
    odds = -math.log(w[x > 0].sum() / w[x < 0].sum())
    return math.log(z), float(w @ u / w.sum()), float(w @ x / w.sum()), float(right - left), odds


def cluster_share(centres: np.ndarray) -> float:
    """Population of the points nearer to the second centre: a half-plane, so one normal integral for each component."""
    normal = centres[1] - centres[0]
    middle = 0.5 * (centres[0] + centres[1]) @ normal
    return float(SHARES @ norm.sf((middle - MEANS @ normal) / np.linalg.norm(normal)))


def exact(potential: GaussianMixture, n: int, rng: torch.Generator) -> Ensemble:
    """Independent exact samples, as a reference."""
    x = potential.sample(n, rng)
    return Ensemble(x.numpy(), np.zeros(n), 1.0, energies=potential(x).numpy())


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


@dataclass(frozen=True)
class HarmonicAnswers:
    """What is known of the harmonic molecule.

    Attributes
    ----------
    log_z : float
    torsion, region, far : str
        A torsion, the half circle about its centre, and a sector elsewhere, as expressions.
    centre : float
        Mean of the torsion, degrees.
    odds, difference : float
        kT; free energy of the region against all else, and of the sector less that of the region.
    """

    log_z: float
    torsion: str
    region: str
    far: str
    centre: float
    odds: float
    difference: float


def harmonic_generator(seed: int) -> tuple[BoltzmannGenerator, HarmonicAnswers]:
    """Five carbons with harmonic bonds and angles, and a cosine for each torsion; the generator is untrained."""
    source = carbon_chain()
    chart = BoltzmannGenerator.for_molecule(source).coordinates
    molecule, log_z = harmonic_molecule(source, chart)
    generator = BoltzmannGenerator.for_molecule(molecule, seed=seed)
    row = next(row for row in chart.rows if row.kind == "free torsion")
    positions = torch.as_tensor(np.array(source.positions._value))[None]
    centre = math.degrees(float(chart.internal.to_internal(positions)[0][0, chart.rows.index(row)]))
    stiffness = SOFT / source.kT
    torsion = f"torsion({', '.join(str(atom) for atom in row.atoms)})"

    def share(low: float, high: float) -> float:
        """Population of low < phi - centre < high under exp(k cos phi)."""
        inner = quad(lambda a: math.exp(stiffness * (math.cos(a) - 1)), math.radians(low), math.radians(high))[0]
        return float(inner / (2 * math.pi * ive(0, stiffness)))

    near, far = share(-90, 90), share(60, 150)
    return generator, HarmonicAnswers(
        log_z=log_z,
        torsion=torsion,
        region=f"{centre - 90:.6f} < {torsion} < {centre + 90:.6f}",
        far=f"{centre + 60:.6f} < {torsion} < {centre + 150:.6f}",
        centre=centre,
        odds=-math.log(near / (1 - near)),
        difference=-math.log(far / near),
    )
