"""Maximum likelihood on reference samples of alanine dipeptide, with flowing and with placed hydrogens.

    python benchmarks/maximum_likelihood.py [--toy] [--parts flow network ...] [--work runs/maximum_likelihood]

``flow``: all atoms, trained on the frames of benchmarks/results/reference_*.npz (and on those of the whole runs that
`benchmarks/reference.py` keeps, where --frames points to them), tested on walkers that training has not seen.
``network``: heavy atoms, hydrogens placed by a network h; trained and tested on parallel tempering on U(h(x_C)), whose
ladders are independent, and on sampling under a flattening bias on the same potential, which sees more of the minor
basin; and on samples of ``flow`` weighted to this target, which are independent and say what it does to a population.

Writes benchmarks/results/maximum_likelihood.txt and .json. Every finished part is kept in --work and not repeated:
start the same command again to go on, or delete a part's file to repeat it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from scipy.special import logsumexp
from tables import Table

import boltzgen as bg
from boltzgen.diagnostics import Verdict, forward_ess_fraction
from boltzgen.energy import CompiledPotential
from boltzgen.free_energy import BasinFreeEnergy, basin_free_energies
from boltzgen.free_energy.acceptance_ratio import log_z_bar
from boltzgen.placement import PlacedPotential, hydrogen_density, train_placement, with_placed_hydrogens
from boltzgen.sampling import SamplingRun, flattened_sampling, learn_bias, parallel_tempering, shipped_reference

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FRAMES = RESULTS / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"
BASINS = {"C7ax": "0 < phi < 150"}
TEST_SHARE = 8  # every eighth walker or ladder is for testing
WORST = 1e-3  # share of the weight of test frames that one forward ESS leaves out
HOT = 750.0  # K; where the network also learns to place hydrogens, and where walkers start
log = logging.getLogger("maximum likelihood")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; evaluations are of energy and forces."""

    flow_steps: int = 1000
    more_flow_steps: int = 4000
    network_steps: int = 2000
    placement_steps: int = 2000
    samples: int = 100_000
    hot: int = 2_000_000
    learning: int = 1_500_000
    flattened: int = 6_000_000
    tempering: int = 9_000_000
    all_atom_tempering: int = 50_000_000


TOY = Sizes(
    flow_steps=20,
    more_flow_steps=20,
    network_steps=20,
    placement_steps=20,
    samples=500,
    hot=20_000,
    learning=20_000,
    flattened=40_000,
    tempering=40_000,
    all_atom_tempering=40_000,
)


class Study:
    """The molecule, the parts and what they need of each other; every part is made once and read afterwards."""

    def __init__(self, work: Path, sizes: Sizes, seed: int = 0, frames: list[Path] | None = None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.sizes, self.seed = work, sizes, seed
        self.frames = frames or []
        self.molecule = bg.Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb")
        self.potential = CompiledPotential(self.molecule)

    def result(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A part's figures, made or read."""
        path = self.work / f"{name}.json"
        if not path.exists():
            log.info("%s begins", name)
            started = time.perf_counter()
            found = {**make(), "seconds_of_part": round(time.perf_counter() - started)}
            whole(path, lambda partial: partial.write_text(json.dumps(found, indent=1)))
        found = json.loads(path.read_text())
        log.info("%s: %s", name, {key: value for key, value in found.items() if key != "history"})
        return found

    def run(self, name: str, make: Callable[[], SamplingRun]) -> tuple[bg.Ensemble, dict[str, Any]]:
        """A sampler's frames and the record of it, made or read."""
        path = self.work / f"{name}.npz"
        if not path.exists():
            log.info("%s begins", name)
            run = make()
            log.info("%s", run.report())
            ensemble = run.ensemble
            arrays = {key: getattr(ensemble, key) for key in ("positions", "log_weights", "energies", "groups")}
            record = {
                "method": run.method,
                "evaluations": run.evaluations,
                "seconds": round(run.seconds),
                "steps_of_each_walker": run.n_steps,
                "time_step_fs": run.time_step,
                "round_trips": run.round_trips,
                "swaps": [round(float(share), 2) for share in run.swap_acceptance],
                "target": ensemble.target,
            }
            whole(path, lambda partial: np.savez(partial, record=json.dumps(record), **arrays))
        with np.load(path) as stored:
            record = json.loads(str(stored["record"]))
            arrays = {key: stored[key] for key in stored.files if key != "record"}
        ensemble = bg.Ensemble(kT=self.molecule.kT, molecule=self.molecule, target=record["target"], **arrays)
        return ensemble, record

    def model(self, name: str, make: Callable[[], bg.BoltzmannGenerator]) -> bg.BoltzmannGenerator:
        """A trained generator, made or read."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            log.info("%s begins", name)
            make().save(path)
        return bg.BoltzmannGenerator.load(path)

    def untrained(self, hydrogens: str) -> bg.BoltzmannGenerator:
        """A generator with internal coordinates."""
        return bg.BoltzmannGenerator.for_molecule(self.molecule, self.potential, hydrogens=hydrogens, seed=self.seed)

    def flow(self, name: str, frames: bg.Ensemble, n_steps: int) -> dict[str, Any]:
        """Train with flowing hydrogens, and test."""
        return self.trained_and_tested(f"flow, {name}", lambda: self.untrained("flow"), frames, n_steps)

    def trained_and_tested(
        self,
        name: str,
        untrained: Callable[[], bg.BoltzmannGenerator],
        frames: bg.Ensemble,
        n_steps: int,
        others: bg.Ensemble | None = None,
    ) -> dict[str, Any]:
        """Maximum likelihood on most groups of some frames; likelihood, ESS and populations on the rest, or on others.

        Of other frames those groups are taken that no training on them sees, so that results can be compared.
        """

        model = self.work / f"{name}.safetensors"

        def train() -> dict[str, Any]:
            generator = untrained()
            seen, _, outside = split(generator, frames)
            begin = time.perf_counter()
            history = bg.pretrain(generator, seen, n_steps=n_steps, seed=self.seed)
            seconds = time.perf_counter() - begin
            generator.save(model)
            table = history.table()
            return {
                "training_frames": len(seen),
                "share_outside_domain": outside,
                "training": str(history.events[-1]),
                "training_seconds": round(seconds),
                "history": {key: list(map(float, table[key])) for key in ("step", "loss", "held_out")},
            }

        def test() -> dict[str, Any]:
            generator = bg.BoltzmannGenerator.load(model)
            generator.rng.manual_seed(self.seed + 1)
            unseen = split(generator, frames if others is None else others)[1]
            return tested(generator, unseen, self.sizes.samples)

        return self.result(f"{name}, training", train) | self.result(f"{name}, test", test)

    def hot_frames(self) -> np.ndarray:
        """All-atom frames at 750 K, inside the domain."""
        hot = self.molecule.with_temperature(HOT)
        n_walkers = 256
        n_steps = max(self.sizes.hot // n_walkers, 20)
        frames, _ = self.run(
            "hot frames",
            lambda: parallel_tempering(
                hot,
                self.potential,
                n_steps=n_steps,
                n_replicas=1,
                n_walkers=n_walkers,
                exchange_interval=10,
                save_interval=max(n_steps // 20 // 10, 1) * 10,
                seed=self.seed,
            ),
        )
        return frames.positions[self.untrained("flow").contains(frames.positions)]

    def placing(self) -> bg.BoltzmannGenerator:
        """A generator whose network places hydrogens well, at 300 K and hotter; its heavy-atom flow is untrained."""

        def make() -> bg.BoltzmannGenerator:
            generator = self.untrained("network")
            hot, cold = self.hot_frames(), shipped_frames(self.molecule).positions
            n_steps = self.sizes.placement_steps
            # Half of each, though there are fewer hot ones.
            mixed = np.concatenate([cold, hot[np.arange(len(cold)) % len(hot)]])
            log.info("%s", train_placement(generator, mixed, n_steps=n_steps, seed=self.seed))
            return generator

        return self.model("placing", make)

    def starts(self, n: int) -> np.ndarray:
        """Hot structures for n walkers: spread over more than the walkers are going to settle in."""
        hot = self.hot_frames()
        return hot[np.random.default_rng(self.seed).choice(len(hot), n)]

    def tempered(self) -> tuple[bg.Ensemble, dict[str, Any]]:
        """Parallel tempering on U(h(x_C))."""
        n_walkers, n_replicas = 96, 5
        n_steps = max(self.sizes.tempering // (n_walkers * n_replicas), 60)
        return self.run(
            "tempering, placed",
            lambda: parallel_tempering(
                self.molecule,
                PlacedPotential(self.placing()),
                n_steps=n_steps,
                n_replicas=n_replicas,
                n_walkers=n_walkers,
                time_step=2.0,
                exchange_interval=20,
                save_interval=min(max(n_steps // 3 // 20, 1) * 20, 100),
                burn_in=0.25,
                seed=self.seed,
                start=self.starts(n_walkers),
            ),
        )

    def flattened(self) -> tuple[bg.Ensemble, dict[str, Any]]:
        """Flattened sampling on U(h(x_C)), of which every evaluation is spent at 300 K."""
        n_walkers = 512
        n_steps = max(self.sizes.flattened // n_walkers, 40)

        def make() -> SamplingRun:
            placed = PlacedPotential(self.placing())
            options: dict[str, Any] = {"n_walkers": n_walkers, "start": self.starts(n_walkers)}
            # Few steps of many walkers: deposits are higher than by default, so that the bias is up in time.
            bias = learn_bias(
                self.molecule,
                placed,
                n_steps=max(self.sizes.learning // n_walkers, 20),
                height=0.1,
                seed=self.seed,
                **options,
            )
            return flattened_sampling(
                self.molecule,
                placed,
                bias,
                n_steps=n_steps,
                save_interval=min(n_steps // 3, 200),
                seed=self.seed,
                **options,
            )

        return self.run("flattened, placed", make)

    def all_atom_tempered(self) -> tuple[bg.Ensemble, dict[str, Any]]:
        """Parallel tempering on U, as users get it but for the start."""
        n_walkers, n_replicas = 96, 8
        n_steps = max(self.sizes.all_atom_tempering // (n_walkers * n_replicas), 60)
        return self.run(
            "tempering, all atoms",
            lambda: parallel_tempering(
                self.molecule,
                self.potential,
                n_steps=n_steps,
                n_replicas=n_replicas,
                n_walkers=n_walkers,
                exchange_interval=20,
                save_interval=min(max(n_steps // 3 // 20, 1) * 20, 200),
                burn_in=0.25,
                seed=self.seed,
                start=self.starts(n_walkers),
            ),
        )

    def weighted(self, flowing: str) -> tuple[bg.Ensemble, dict[str, Any]]:
        """Samples of a trained flow, weighted to the target of the network."""

        def make() -> SamplingRun:
            begin, n = time.perf_counter(), self.sizes.samples
            flow = bg.BoltzmannGenerator.load(self.work / f"{flowing}.safetensors")
            flow.rng.manual_seed(self.seed + 2)
            ensemble = with_placed_hydrogens(self.placing(), flow.sample(n), hydrogen_density(flow))
            return SamplingRun(
                # Independent samples in equal parts, some of which are for testing.
                ensemble=replace(ensemble, groups=np.arange(len(ensemble)) % 64),
                method="samples of a flow, weighted",
                evaluations=2 * n,
                seconds=time.perf_counter() - begin,
                n_steps=0,
                time_step=0.0,
                seed=self.seed,
            )

        return self.run("weighted samples", make)


def whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(f"partial {path.name}")
    write(partial)
    os.replace(partial, path)


def shipped_frames(molecule: bg.Molecule) -> bg.Ensemble:
    """The reference frames of the repository."""
    with np.load(FRAMES) as stored:
        return bg.Ensemble(
            positions=stored["positions"],
            log_weights=stored["log_weights"],
            kT=molecule.kT,
            molecule=molecule,
            groups=stored["groups"].astype(np.int64),
        )


def run_frames(molecule: bg.Molecule, paths: list[Path], seed: int) -> bg.Ensemble:
    """Frames of runs that `benchmarks/reference.py` kept, without most of those that weigh next to nothing.

    A frame below a twentieth of the mean weight is kept with a chance in proportion to its weight, and then weighs that
    twentieth: on average nothing changes.
    """
    random, parts, offset = np.random.default_rng(seed), [], 0
    for path in paths:
        with np.load(path) as stored:
            log_weights, groups = stored["log_weights"], stored["groups"]
            least = logsumexp(log_weights) - math.log(20 * len(log_weights))
            kept = np.flatnonzero(np.log(random.random(len(log_weights))) < log_weights - least)
            log_weights = np.maximum(log_weights[kept], least)
            parts.append((stored["positions"][kept], log_weights, groups[kept] + offset))
        offset += int(groups.max()) + 1
    positions, log_weights, groups = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return bg.Ensemble(positions=positions, log_weights=log_weights, kT=molecule.kT, molecule=molecule, groups=groups)


def split(generator: bg.BoltzmannGenerator, frames: bg.Ensemble) -> tuple[bg.Ensemble, bg.Ensemble, float]:
    """Frames to train on and to test on, of different groups, all inside the domain; and the share outside."""
    assert frames.groups is not None
    inside = generator.contains(frames.positions)
    test = frames.groups % TEST_SHARE == 0
    rows = lambda chosen: frames[np.flatnonzero(chosen & inside)]
    return rows(~test), rows(test), float(frames.weights[~inside].sum())


def tested(generator: bg.BoltzmannGenerator, test: bg.Ensemble, n_samples: int) -> dict[str, Any]:
    """Likelihood of test frames, ESS both ways and the population after reweighting.

    The Kullback-Leibler divergence and the forward ESS need log Z: Bennett's acceptance ratio between generated and
    test frames.
    """
    log_weights = generator.log_weights_of(test.positions, generator.energies(test.positions))
    log_q = np.concatenate(
        [
            generator.log_prob(part).detach().double().numpy()
            for part in torch.as_tensor(test.positions).to(next(generator.flow.parameters())).split(4096)
        ]
    )
    weights = test.weights
    generated = generator.sample(n_samples)
    log_z = log_z_bar(generated.log_weights, log_weights, weights)
    nll, error = weighted_mean(-log_q, weights, test.groups)
    divergence, divergence_error = weighted_mean(log_weights - log_z, weights, test.groups)
    order = np.argsort(-log_weights)
    typical = order[np.cumsum(weights[order]) > WORST]
    return {
        "test_frames": len(test),
        "test_groups": len(np.unique(test.groups)),
        "nll": nll,
        "nll_standard_error": error,
        "divergence": divergence,
        "divergence_standard_error": divergence_error,
        "forward_ess": forward_ess_fraction(log_weights, weights, log_z),
        "forward_ess_without_worst": forward_ess_fraction(log_weights[typical], weights[typical], log_z),
        "samples": n_samples,
        "reverse_ess": generated.ess_fraction,
        "reverse_ess_clipped": clipped_ess(generated.log_weights),
        "pareto_k": generated.pareto_k,
        "max_weight": generated.max_weight,
        "raw_population": basin_of(replace(generated, log_weights=np.zeros(len(generated))))["probability"],
        "basin": basin_of(generated),
    }


def clipped_ess(log_weights: np.ndarray, share: float = 1e-4) -> float:
    """ESS with the top 1e-4 of the weights clipped, as published values have it."""
    clipped = np.minimum(log_weights, np.quantile(log_weights, 1 - share))
    return float(np.exp(2 * logsumexp(clipped) - logsumexp(2 * clipped)) / len(clipped))


def weighted_mean(values: np.ndarray, weights: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """Mean, and its standard error by leaving out one independent group at a time."""
    mean = float(weights @ values / weights.sum())
    labels = np.unique(groups)
    parts = np.array([[weights[m].sum(), weights[m] @ values[m]] for m in (groups == label for label in labels)])
    left = parts.sum(0) - parts
    return mean, float(np.sqrt((len(labels) - 1) * np.var(left[:, 1] / left[:, 0])))


def basin_of(ensemble: bg.Ensemble) -> dict[str, Any]:
    """Free energy of C7ax against all else, with its 95 % interval."""
    # The verdict on importance weights is shown apart.
    return dict(basin_free_energies(ensemble, BASINS, Verdict("", ""))["C7ax"].to_dict())


def reference_row(study: Study, name: str, made: tuple[bg.Ensemble, dict[str, Any]]) -> dict[str, Any]:
    """A sampler's basin, inside the domain of the generators."""
    ensemble, record = made
    inside = study.untrained("flow" if not ensemble.target else "network").contains(ensemble.positions)
    kept = ensemble[np.flatnonzero(inside)]
    outside = float(ensemble.weights[~inside].sum())
    return {"name": name, **record, "frames": len(kept), "share_outside_domain": outside, "basin": basin_of(kept)}


def shipped_row(study: Study) -> dict[str, Any]:
    """The converged reference."""
    summary = shipped_reference(study.molecule)
    assert summary is not None
    basin: BasinFreeEnergy = summary.basin("C7ax", study.molecule.kT)
    entry = summary.free_energies["C7ax"]
    return {
        "name": "flattened, all atoms (shipped)",
        "evaluations": entry["energy_evaluations"],
        "seconds": entry["seconds"],
        "share_outside_domain": entry["outside_domain"],
        "basin": basin.to_dict(),
    }


def half_width(basin: Mapping[str, Any]) -> float:
    return 0.5 * (basin["delta_f_kT_high"] - basin["delta_f_kT_low"])


def shown(basin: Mapping[str, Any]) -> str:
    return f"{basin['delta_f_kT']:.2f} ± {half_width(basin):.2f}"


def likelihood_table(rows: dict[str, dict[str, Any]]) -> Table:
    """One line a generator."""
    table = Table(
        "Maximum likelihood: ACE-ALA-NME, CHARMM36m, vacuum, 300 K, amides trans",
        (
            "hydrogens, data",
            "frames: trained on",
            "tested on",
            "NLL (nats)",
            "KL(p|q)",
            "forward ESS",
            "without worst 0.1 %",
            "reverse ESS",
            "top 1e-4 clipped",
            "Pareto k",
            "P(C7ax) drawn",
            "reweighted",
            "ΔF (kT)",
        ),
    )
    for name, row in rows.items():
        basin = row["basin"]
        table.rows.append(
            [
                name,
                f"{row['training_frames']:,}",
                f"{row['test_frames']:,}",
                f"{row['nll']:.2f} ± {row['nll_standard_error']:.2f}",
                f"{row['divergence']:.3f} ± {row['divergence_standard_error']:.3f}",
                f"{row['forward_ess']:.3f}",
                f"{row['forward_ess_without_worst']:.3f}",
                f"{row['reverse_ess']:.3f}",
                f"{row['reverse_ess_clipped']:.3f}",
                f"{row['pareto_k']:.2f}",
                f"{row['raw_population']:.4f}",
                f"{basin['probability']:.4f}",
                shown(basin),
            ]
        )
    samples = next(iter(rows.values()))["samples"]
    table.notes = [
        "Tested on walkers or ladders that training has not seen (that on weighted flow samples: on those of the "
        "flattened sampler); NLL with its standard error over them. Densities are per nm^60 (flow, all atoms) and "
        "nm^24 (network, heavy atoms): compare NLL within a kind.",
        f"Reverse ESS, Pareto k and ΔF from {samples:,} samples with unclipped weights; ΔF = -kT ln[P/(1-P)] of "
        "0 < phi < 150 with its 95 % half-width; forward ESS is 1/E_p[p/q] on the test frames, log Z from BAR; "
        "without those that q covers worst, which hold 0.1 % of the weight.",
        *(f"{name}: {row['training']} ({row['training_seconds']} s)" for name, row in rows.items()),
    ]
    return table


def agreement_table(rows: dict[str, dict[str, Any]], references: list[dict[str, Any]]) -> Table:
    """Each reference, and how far the generators of its target are from it."""
    table = Table(
        "ΔF(C7ax) of generators against samplers of the same target",
        (
            "reference",
            "target",
            "evaluations",
            "s",
            "outside domain",
            "ΔF (kT)",
            "generator",
            "difference",
            "joint 95 %",
        ),
    )
    for reference in references:
        placed = bool(reference.get("target"))
        for name, row in rows.items():
            if name.startswith("flow") == placed:
                continue
            difference = row["basin"]["delta_f_kT"] - reference["basin"]["delta_f_kT"]
            table.rows.append(
                [
                    reference["name"],
                    "U(h(x_C))" if placed else "U",
                    f"{reference['evaluations']:.1e}",
                    f"{reference['seconds']:,}",
                    f"{reference['share_outside_domain']:.1e}",
                    shown(reference["basin"]),
                    name,
                    f"{difference:+.2f}",
                    f"{math.hypot(half_width(row['basin']), half_width(reference['basin'])):.2f}",
                ]
            )
    return table


def main() -> None:
    """All parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="the whole way at a small budget; results mean nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "maximum_likelihood")
    parser.add_argument("--out", type=Path, default=RESULTS / "maximum_likelihood")
    parser.add_argument("--frames", type=Path, nargs="*", help="of benchmarks/reference.py --work, for more frames")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N", help="change one of the sizes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    sizes = replace(TOY if options.toy else Sizes(), **{k: int(v) for k, v in (s.split("=") for s in options.size)})
    study = Study(options.work, sizes, options.seed, options.frames)
    started = time.perf_counter()
    rows = {"flow, shipped frames": study.flow("shipped frames", shipped_frames(study.molecule), sizes.flow_steps)}
    if study.frames:
        frames = run_frames(study.molecule, study.frames, study.seed)
        rows["flow, whole runs"] = study.flow("whole runs", frames, sizes.more_flow_steps)
    references = [shipped_row(study)]
    flattened = study.flattened()
    weighted = study.weighted("flow, whole runs" if study.frames else "flow, shipped frames")
    for source, made, others in (
        ("parallel tempering", study.tempered(), None),
        ("flattened", flattened, None),
        ("weighted flow samples", weighted, flattened[0]),
    ):
        name = f"network, {source}"
        rows[name] = study.trained_and_tested(name, study.placing, made[0], sizes.network_steps, others)
        references.append(reference_row(study, f"{source}, heavy atoms", made))
    references.append(reference_row(study, "parallel tempering, all atoms", study.all_atom_tempered()))
    tables = [likelihood_table(rows), agreement_table(rows, references)]
    check = {
        "samples": len(weighted[0]),
        "reverse_ess": weighted[0].ess_fraction,
        "pareto_k": weighted[0].pareto_k,
        "basin": basin_of(weighted[0]),
    }
    tables[1].notes = [
        f"Weighted flow samples: {check['samples']:,} of the best flow above, weighted to U(h(x_C)) by its density of "
        f"heavy atoms: P(C7ax) = {check['basin']['probability']:.4f}, ESS {check['reverse_ess']:.3f}, Pareto k "
        f"{check['pareto_k']:.2f}. Reweighted, a generator does not inherit the populations of what it was trained on."
    ]
    command = "python benchmarks/maximum_likelihood.py " + " ".join(sys.argv[1:])
    about = {
        "command": command.strip(),
        "date": datetime.date.today().isoformat(),
        "seed": options.seed,
        "seconds_of_this_call": round(time.perf_counter() - started),
        "versions": {
            "boltzgen": bg.__version__,
            "openmm": openmm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    text = (
        "\n".join(table.markdown() for table in tables) + f"\n{command.strip()}; {about['date']}; seed {options.seed}\n"
    )
    print(text)
    options.out.with_suffix(".txt").write_text(text)
    content = {
        **about,
        "sizes": vars(sizes),
        "generators": rows,
        "references": references,
        "weighted_flow_samples": check,
    }
    options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
