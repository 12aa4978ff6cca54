"""Which losses keep the minor mode of a double well? Each refines the same pre-trained flow: one row a loss and seed.

    python benchmarks/losses.py [--case 2D 12D] [--seeds 0 1 2] [--losses l2+ reverse-kl] [--out path/without_ending]

Writes one file for each case, OUT_CASE.txt, anew after every row. All figures are of the weights as they are at an
iteration, not of their running average. The case 12D has the target (standard deviation 10, not normalised) and the
network (8 x 4 couplings, 64 features) of Felardos et al. (2022), section 2; iterations and rates are fewer and ours.
With --square-root: the numerical experiment on proposition I.1.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import openmm
import torch
from tables import Table

from boltzgen import __version__
from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.energy.analytic import DoubleWell
from boltzgen.errors import BoltzgenError
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import LOSSES
from boltzgen.pretraining import pretrain
from boltzgen.training import Stage, Training

RESULTS = Path(__file__).resolve().parent / "results"
N_DATA = 20_000
N_MEASURED = 50_000


@dataclass(frozen=True)
class Case:
    """A target, a network and how long to train.

    Attributes
    ----------
    pretraining : tuple of int
        Steps; more than one makes partial and complete pre-trainings.
    pretraining_rate, rate : float
        Learning rates of Adam, of the pre-training (to zero on a cosine) and of the refinement (constant).
    """

    dimension: int
    scale: float
    rounds: int
    hidden: int
    pretraining: tuple[int, ...]
    pretraining_rate: float
    steps: int
    rate: float
    batch_size: int


CASES = {
    "2D": Case(2, 1.0, 2, 32, (500,), 3e-3, 1000, 3e-4, 256),
    "12D": Case(12, 10.0, 8, 64, (3000, 1000), 1e-3, 400, 1e-4, 512),
}


def square_of_first(positions: torch.Tensor) -> torch.Tensor:
    """The function f of the loss "estimator-variance": one plus the square of the bimodal coordinate."""
    return 1 + positions[:, 0, 0].square()


def measure(generator: BoltzmannGenerator) -> tuple[float, float, float, float]:
    """Percent generated in the minor well, the same after reweighting, ESS in percent, and the mean reduced energy."""
    target = generator.potential
    with torch.no_grad():
        x, log_q = generator.flow.sample_and_log_prob(N_MEASURED, torch.Generator().manual_seed(17))
        x, log_q = x.double(), log_q.double()
        energy = target(x)
    log_weights = -energy - log_q
    minor = target.in_minor_well(x).double()
    weighted = torch.softmax(log_weights, 0) @ minor
    ess = effective_sample_fraction(log_weights.numpy())
    return 100 * float(minor.mean()), 100 * float(weighted), 100 * ess, float(energy.mean())


def refine(start: BoltzmannGenerator, name: str, case: Case, at: list[int]) -> list[object]:
    """One row: the start refined with a loss."""
    target = DoubleWell(case.dimension, scale=case.scale)
    generator = BoltzmannGenerator(copy.deepcopy(start.flow), target, seed=start.seed)
    seen = {}

    def record(values: dict[str, object], training: Training) -> None:
        if values["step"] in at:
            seen[values["step"]] = measure(generator)

    stage = Stage("refinement", name, case.steps, learning_rate_start=case.rate, learning_rate_end=case.rate)
    training = Training(
        generator, [stage], batch_size=case.batch_size, observable=square_of_first, record_every=at[0], on_record=record
    )
    begin = time.perf_counter()
    try:
        training.run()
    except BoltzgenError as error:
        return [name, LOSSES[name].source, LOSSES[name].needs, *[None] * (len(at) + 4), str(error)[:40]]
    seconds = time.perf_counter() - begin
    last = seen[at[-1]]
    percents = [f"{seen[step][0]:.2f}" for step in at]
    return [name, LOSSES[name].source, LOSSES[name].needs, *percents, f"{last[1]:.2f}", last[2], last[3], seconds]


def pretrained(case: Case, seed: int, n_steps: int) -> BoltzmannGenerator:
    target = DoubleWell(case.dimension, scale=case.scale)
    torch.manual_seed(seed)
    flow = CartesianFlow((1, case.dimension), n_rounds=case.rounds, n_hidden=case.hidden)
    generator = BoltzmannGenerator(flow, target, seed=seed)
    data = target.sample(N_DATA, torch.Generator().manual_seed(1000 + seed))
    options = {"batch_size": case.batch_size, "learning_rate": case.pretraining_rate}
    pretrain(generator, data, n_steps=n_steps, seed=seed, **options)
    return generator


def table_of(case_name: str, seed: int, n_pretraining: int, losses: list[str]) -> Iterator[Table]:
    """All losses from one pre-trained flow; the table as it is after each of them."""
    case = CASES[case_name]
    at = [case.steps // 8, case.steps // 4, case.steps // 2, case.steps]
    start = pretrained(case, seed, n_pretraining)
    minor, weighted, ess, energy = measure(start)
    truth = DoubleWell(case.dimension, scale=case.scale)
    mean_energy = float(truth(truth.sample(N_MEASURED, torch.Generator().manual_seed(18))).mean())
    table = Table(
        f"Double well {case_name}: pre-trained for {n_pretraining} steps, seed {seed}",
        (
            "loss",
            "source",
            "needs",
            *[f"minor % at {step}" for step in at],
            "reweighted",
            "ESS %",
            "mean u",
            "s",
        ),
    )
    table.notes = [
        f"Truth: {100 * truth.minor_population:.2f} % in the minor well, mean u {mean_energy:.2f}. The start: "
        f"{minor:.2f} % ({weighted:.2f} % reweighted), ESS {ess:.1f} %, mean u {energy:.2f}.",
        f"Adam at {case.rate:g}, batches of {case.batch_size}, gradients clipped at norm 50; {N_MEASURED:,} samples a "
        f"figure. Pre-training on {N_DATA:,} exact samples with forward-kl, at {case.pretraining_rate:g}.",
        "estimator-variance is that for f = 1 + x1^2: it trains towards f p, not p.",
    ]
    for name in losses:
        table.rows.append(refine(start, name, case, at))
        yield table


def square_root_table() -> Table:
    """Gradient descent on KL(p || q) over unconstrained functions q: dq/dt = p / q, by the midpoint rule on a grid."""
    well = DoubleWell(1)
    x = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    p = well.log_prob(x.reshape(-1, 1, 1)).exp()
    q = torch.full_like(p, 1 / 8)
    root = p.sqrt() / torch.trapezoid(p.sqrt(), x)
    distance = lambda a, b: float(torch.trapezoid((a - b).abs(), x)) / 2
    table = Table(
        "Proposition I.1: unconstrained gradient descent on KL(p || q) for the double well, from a constant q",
        ("t", "mass of q", "TV(q / mass, p)", "TV(q / mass, sqrt(p) / mass)", "largest |q - exact| / exact"),
    )
    table.notes = ["Exact: q^2 = q0^2 + 2 p t. Midpoint rule, steps of a thousandth of t and at least 1e-4."]
    t, q0 = 0.0, q.clone()
    for end in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0):
        while t < end:
            step = min(max(1e-4, 1e-3 * t), end - t)
            half = q + 0.5 * step * p / q
            q, t = q + step * p / half, t + step
        exact = (q0.square() + 2 * p * end).sqrt()
        mass = float(torch.trapezoid(q, x))
        table.rows.append(
            [f"{end:g}", mass, distance(q / mass, p), distance(q / mass, root), float((q / exact - 1).abs().max())]
        )
    return table


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--losses", nargs="+", default=[name for name, loss in LOSSES.items() if loss.needs != "data"])
    parser.add_argument("--pretraining", type=int, nargs="+", help="steps, in the place of those of the case")
    parser.add_argument("--square-root", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses")
    options = parser.parse_args()
    head = (
        f"python {' '.join(sys.argv)}\n{date.today()}, boltzgen {__version__}, torch {torch.__version__}, OpenMM "
        f"{openmm.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} thread(s)\n"
    )
    if options.square_root:
        write(Path(f"{options.out}_square_root.txt"), head, [square_root_table()])
        return
    for name in options.case:
        finished: list[Table] = []
        for seed in options.seeds:
            for n_pretraining in options.pretraining or CASES[name].pretraining:
                for table in table_of(name, seed, n_pretraining, options.losses):
                    print(name, seed, n_pretraining, table.rows[-1], flush=True)
                    write(Path(f"{options.out}_{name}.txt"), head, [*finished, table])
                finished.append(table)


def write(path: Path, head: str, tables: list[Table]) -> None:
    path.write_text("\n".join([head, *[table.markdown() for table in tables]]))


if __name__ == "__main__":
    main()
