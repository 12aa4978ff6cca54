"""Which losses keep the minor mode of a double well? Each refines the same pre-trained flow: one row a loss and seed.

    python benchmarks/losses.py [--case 2D 12D] [--seeds 0 1 2] [--losses l2+ reverse-kl] [--out path/without_ending]

Writes one file for each case, OUT_CASE.txt, anew after every row. All figures are of the weights as they are at an
iteration, not of their running average. The case 12D has the target (standard deviation 10, not normalised) and the
network (8 x 4 couplings, 64 features) of Felardos et al. (2022), section 2; iterations and rates are fewer and ours.
With --square-root: the numerical experiment on proposition I.1.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import openmm
import torch
from tables import Table

from boltzgen import __version__
from boltzgen.energy.analytic import DoubleWell
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import LOSSES
from boltzgen.reproduce.curves import Refinement, refine
from boltzgen.reproduce.double_well_data import SOURCE
from boltzgen.reproduce.double_well_flow import Pretraining, measure, pretrained
from boltzgen.reproduce.unconstrained import descend, grid

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


def figures(generator: BoltzmannGenerator) -> dict[str, float]:
    """What a row is made of."""
    return measure(generator, N_MEASURED).as_dict()


def row(start: BoltzmannGenerator, name: str, case: Case, at: list[int]) -> list[object]:
    """One row: the start refined with a loss."""
    plan = Refinement(name, case.steps, case.batch_size, case.rate, measure_every=at[0])
    curve, _ = refine(start, plan, figures, observable=square_of_first)
    about = [name, LOSSES[name].source, LOSSES[name].needs]
    if curve.failed is not None:
        return [*about, *[None] * (len(at) + 4), curve.failed[:40]]
    minor = dict(zip(curve.steps, curve.values["minor"], strict=True))
    last = {key: values[-1] for key, values in curve.values.items()}
    percents = [f"{minor[step]:.2f}" for step in at]
    return [*about, *percents, f"{last['reweighted']:.2f}", last["ess"], last["mean_energy"], curve.seconds]


def settings_of(case: Case, n_steps: int) -> Pretraining:
    """The pre-training of a case; the flow starts with the covariance of the data, unlike that of the paper."""
    return Pretraining(
        n_steps=n_steps,
        n_data=N_DATA,
        batch_size=case.batch_size,
        learning_rate=case.pretraining_rate,
        n_rounds=case.rounds,
        n_hidden=case.hidden,
        dimension=case.dimension,
        scale=case.scale,
        normalised=True,
        patience=10,
    )


def table_of(case_name: str, seed: int, n_pretraining: int, losses: list[str]) -> Iterator[Table]:
    """All losses from one pre-trained flow; the table as it is after each of them."""
    case = CASES[case_name]
    at = [case.steps // 8, case.steps // 4, case.steps // 2, case.steps]
    start = pretrained(settings_of(case, n_pretraining), seed)
    before = measure(start, N_MEASURED)
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
        f"{before.minor:.2f} % ({before.reweighted:.2f} % reweighted), ESS {before.ess:.1f} %, mean u "
        f"{before.mean_energy:.2f}.",
        f"Adam at {case.rate:g}, batches of {case.batch_size}, gradients clipped at norm 50; {N_MEASURED:,} samples a "
        f"figure. Pre-training on {N_DATA:,} samples by {SOURCE}, with forward-kl, at {case.pretraining_rate:g}.",
        "estimator-variance is that for f = 1 + x1^2: it trains towards f p, not p.",
    ]
    for name in losses:
        table.rows.append(row(start, name, case, at))
        yield table


def square_root_table() -> Table:
    """Gradient descent on KL(p || q) over unconstrained functions q: dq/dt = p / q."""
    times = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    start = torch.full_like(grid(), 1 / 8)
    table = Table(
        "Proposition I.1: unconstrained gradient descent on KL(p || q) for the double well, from a constant q",
        ("t", "mass of q", "TV(q / mass, p)", "TV(q / mass, sqrt(p) / mass)", "largest |q - exact| / exact"),
    )
    table.notes = ["Exact: q^2 = q0^2 + 2 p t. Midpoint rule, steps of a hundredth of t and at least 1e-7."]
    found = descend(DoubleWell(1), start, times)
    errors = (found.q / found.exact - 1).abs().amax(dim=1).tolist()
    columns = (found.mass.tolist(), found.distance(found.p), found.distance(found.root), errors)
    table.rows = [[f"{t:g}", *values] for t, *values in zip(times, *columns, strict=True)]
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
