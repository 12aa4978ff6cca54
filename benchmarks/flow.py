"""Speed of the flow: against stacks in the designs of normflows and bgflow, against zuko's splines, and with the chain.

    make bench-flow                (a quarter of an hour on two cores; or: python benchmarks/flow.py --threads 1)
    python benchmarks/flow.py --quick      (minutes: nothing is written)

Prints its tables, for one thread and for two, and writes them to benchmarks/results/flow.md and flow.json. What is
compared takes turns in one process, and the shortest time of each counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from unittest import mock

import numpy as np
import own_splines
import torch
from openmm import app, unit
from stacks import ChannelStack, CoupledSplineStack
from tables import Table, interleaved
from torch import Tensor, nn

from boltzgen.energy import CompiledPotential
from boltzgen.flows.compilation import CompiledFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import data_free_loss
from boltzgen.molecule import Molecule
from boltzgen.training.loop import soft_cap

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = {"alanine_dipeptide": 768, "chignolin": 256}
TRAINING_BATCH = 768
LOSSES = (("l2+", 1.0), ("reverse-kl", 4.0))  # and the temperature over 300 K
ROUNDS = 3
CHAINS = (1, 3, 7, 15)  # alanines: 10, 20, 40 and 80 heavy atoms


def build(molecule: Molecule) -> BoltzmannGenerator:
    return BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False))


def roughen(flow: nn.Module) -> nn.Module:
    """The flow with random weights, so that no bin is like its neighbour."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    return flow


COMPILED = "boltzgen, compiled"


def calls_of(
    flow: nn.Module, batch: int, compiled: CompiledFlow | None = None
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Sampling without gradient, density with gradient, and a training step of a detached loss without its energies."""
    log_prob = flow.log_prob if compiled is None else compiled.log_prob
    draw = (lambda n: flow.sample_and_log_prob(n)[0]) if compiled is None else compiled.sample
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.0)
    with torch.no_grad():
        positions = flow.sample_and_log_prob(batch)[0]

    def sample() -> None:
        with torch.no_grad():
            draw(batch)

    def density() -> None:
        optimizer.zero_grad(set_to_none=True)
        log_prob(positions).mean().backward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            drawn = draw(batch)
        log_prob(drawn).mean().backward()
        optimizer.step()

    if compiled is None:
        return sample, density, step

    def suited(call: Callable[[], None]) -> Callable[[], None]:
        def inner() -> None:
            with compiled.suited_threads():
                call()

        return inner

    return suited(sample), suited(density), suited(step)


def size(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters())


def peers(names: list[str], seconds: float) -> Table:
    """Ours against stacks of as many layers, as wide, with as many bins."""
    table = Table(
        "A training step against stacks of the same size",
        (
            "molecule",
            "flow",
            "parameters",
            "sample, us",
            "density and gradient, us",
            "step, us",
            "over ours",
            "compiled",
        ),
    )
    for name in names:
        print(f"{Path(name).stem} ...", flush=True)
        generator = build(Molecule.from_pdb(ROOT / name))
        config, chart = generator.flow.config, generator.coordinates
        n_torsions, n_stiff = (len(chart.indices(free, False)) for free in (True, False))
        heavy = config.heavy_sizes(n_torsions, n_stiff)
        layers = heavy["torsion_layers"] + heavy["stiff_layers"]
        flows = {
            "boltzgen": generator.flow,
            "as normflows": CoupledSplineStack(chart, layers, heavy["stiff_hidden"], heavy["n_bins"]),
            "as bgflow": ChannelStack(
                chart, heavy["torsion_layers"], heavy["stiff_layers"], heavy["stiff_hidden"], heavy["n_bins"]
            ),
        }
        for flow in flows.values():
            roughen(flow)
        for flow in list(flows.values())[1:]:
            check(flow)
        batch = BATCHES[Path(name).stem]
        compiled = CompiledFlow(generator.flow, batch)
        table.notes += [compiled.reason] if compiled.reason else []
        entries = [(COMPILED, generator.flow, compiled), *((label, flow, None) for label, flow in flows.items())]
        calls = [(call, batch) for _, flow, one in entries for call in calls_of(flow, batch, one)]
        times = np.array(interleaved(calls, seconds, ROUNDS)).reshape(len(entries), 3)
        ours = times[1, 2], times[0, 2]
        for (label, flow, _), row in zip(entries, times, strict=True):
            ratios = [float(row[2] / one) for one in ours]
            table.rows.append([Path(name).stem, label, size(flow), *map(float, row), *ratios])
        table.notes.append(
            f"{Path(name).stem}, batches of {batch}: {layers} layers of width {heavy['stiff_hidden']}, "
            f"{heavy['n_bins']} bins; ours has "
            f"{heavy['torsion_layers']} of width {heavy['torsion_hidden']} and {heavy['stiff_layers']} of width "
            f"{heavy['stiff_hidden']} on heavy atoms, then local groups of hydrogens"
        )
    table.notes += [
        "microseconds a sample; a step samples without gradient, then takes the density with its "
        "gradient and updates the weights; energies are left out; all use the same map between internal and Cartesian "
        "coordinates",
        f"{COMPILED}: density and samples through torch.compile, as in trainings of 1e7 evaluations or more; a flow of "
        "less than a million parameters on one thread then, which is faster",
        "the stacks of others are restated from their published designs in benchmarks/stacks.py, not their own code",
    ]
    return table


def check(flow: nn.Module) -> None:
    """The restated stacks must be flows: log_prob of a sample is its log-density."""
    torch.manual_seed(0)
    with torch.no_grad():
        flow.double()
        torch.set_default_dtype(torch.float64)
        try:
            positions, log_q = flow.sample_and_log_prob(64)
            error = float((flow.log_prob(positions) - log_q).abs().median())
        finally:
            torch.set_default_dtype(torch.float32)
            flow.float()
    if not error < 1e-6:
        raise SystemExit(f"the restated stack is no flow: log_prob differs by {error:.1e}")


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """The flow with splines of our own in the place of zuko's."""
    with contextlib.ExitStack() as stack:
        for module in ("couplings", "hydrogens"):
            for name in ("circular_spline", "circular_spline_inverse"):
                stack.enter_context(mock.patch(f"boltzgen.flows.{module}.{name}", getattr(own_splines, name)))
        yield


def training_step(generator: BoltzmannGenerator, loss: str, heat: float, batch: int) -> Callable[[], None]:
    """One whole step of a training: samples, their energies, the loss, its gradient, and the update of the weights."""
    flow, kind = generator.flow, data_free_loss(loss)
    objective, kT = kind.start(list(flow.parameters())), heat * generator.kT
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if kind.detached:
            with torch.no_grad():
                positions, _ = flow.sample_and_log_prob(batch)
                reduced = generator.reduced_energy(positions, kT)
            log_q = flow.log_prob(positions)
        else:
            positions, log_q = flow.sample_and_log_prob(batch)
            reduced = generator.reduced_energy(positions, kT)
        valid = torch.isfinite(reduced) & torch.isfinite(log_q)
        objective(-soft_cap(reduced[valid]), log_q[valid]).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 50.0)
        optimizer.step()

    return step


def zuko(names: list[str], seconds: float) -> Table:
    """End to end: the same flow and training, the splines exchanged."""
    table = Table(
        "A whole training step with the splines of zuko",
        ("molecule", "loss", "own splines, us a sample", "zuko's, us a sample", "ratio"),
    )
    for name in names:
        molecule = Molecule.from_pdb(ROOT / name)
        generator = BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=True))
        roughen(generator.flow)
        batch, calls = TRAINING_BATCH, []
        for loss, heat in LOSSES:
            step = training_step(generator, loss, heat, batch)

            def own(step: Callable[[], None] = step) -> None:
                with own_code():
                    step()

            calls += [(own, batch), (step, batch)]
        times = np.array(interleaved(calls, seconds, 2 * ROUNDS)).reshape(len(LOSSES), 2)
        for (loss, _), (own_time, zuko_time) in zip(LOSSES, times, strict=True):
            table.rows.append([Path(name).stem, loss, *map(float, (own_time, zuko_time, zuko_time / own_time))])
    table.notes += [
        f"batches of {TRAINING_BATCH}; a step draws samples, evaluates the compiled energy (with forces for "
        "reverse-kl, at 1200 K; without for l2+), takes the loss and its gradient, clips it and updates by Adam",
        f"the flow uses MonotonicRQSTransform of zuko {metadata.version('zuko')}, because a step takes at most 1.3 "
        "times as long as with the leanest splines of our own (benchmarks/own_splines.py); the bound was set before",
    ]
    return table


def chain(n: int, folder: Path) -> Molecule:
    """ACE-ALA_n-NME: the middle residue of a structure repeated by one and the same rigid motion."""
    pdb = app.PDBFile(str(ROOT / "tests" / "data" / "ace_ala5_nme.pdb"))
    positions = np.asarray(pdb.positions.value_in_unit(unit.nanometer))
    residues = list(pdb.topology.residues())
    frames = [_frame(residue, positions) for residue in residues[1:6]]
    step = np.linalg.solve(frames[2], frames[3])  # as seen from the residue before
    topology, places = app.Topology(), []
    new_chain, last = topology.addChain(), None
    for k in range(-1, n + 1):
        source = residues[0] if k < 0 else residues[6] if k == n else residues[3]
        anchor = frames[0] if k < 0 else frames[4] if k == n else frames[2]
        target = np.linalg.matrix_power(step, min(max(k, 0), n - 1))
        residue = topology.addResidue(source.name, new_chain)
        atoms = {}
        for atom in source.atoms():
            atoms[atom.name] = topology.addAtom(atom.name, atom.element, residue)
            local = np.linalg.solve(anchor, [*positions[atom.index], 1.0])
            places.append((target @ local)[:3])
        for bond in source.internal_bonds():
            topology.addBond(atoms[bond[0].name], atoms[bond[1].name])
        if last is not None:
            topology.addBond(last, atoms["N"])
        last = atoms.get("C")
    path = folder / f"ace_ala{n}_nme.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, np.array(places) * unit.nanometer, file)
    return Molecule.from_pdb(path)


def _frame(residue: app.topology.Residue, positions: np.ndarray) -> np.ndarray:
    """Homogeneous matrix (4, 4) of the frame of N, CA and C."""
    index = {atom.name: atom.index for atom in residue.atoms()}
    n, ca, c = (positions[index[name]] for name in ("N", "CA", "C"))
    x = (c - ca) / np.linalg.norm(c - ca)
    y = (n - ca) - x * np.dot(n - ca, x)
    y /= np.linalg.norm(y)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = x, y, np.cross(x, y), ca
    return matrix


def kept_bytes(flow: nn.Module, batch: int = 64) -> float:
    """Bytes a sample that the gradient of the density needs kept, parameters left out."""
    with torch.no_grad():
        positions = flow.sample_and_log_prob(batch)[0]
    own = {tensor.untyped_storage().data_ptr() for tensor in [*flow.parameters(), *flow.buffers()]}
    storages: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # as long as it lives its address is its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_q = flow.log_prob(positions)
    del log_q
    return sum(storages.values()) / batch


def growth(chains: tuple[int, ...], seconds: float, batch: int) -> Table:
    """Time and memory with the length of a chain."""
    table = Table(
        "ACE-ALA_n-NME: time and memory with the chain",
        ("heavy atoms", "parameters", "sample, us", "density and gradient, us", "step, us", "kept for gradient, kB"),
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        flows = [roughen(build(chain(n, Path(folder))).flow) for n in chains]
    calls = [(call, batch) for flow in flows for call in calls_of(flow, batch)]
    times = np.array(interleaved(calls, seconds, ROUNDS)).reshape(len(flows), 3)
    for flow, row in zip(flows, times, strict=True):
        n_heavy = flow.internal.zmatrix.n_heavy
        rows.append([n_heavy, size(flow), *map(float, row), kept_bytes(flow) / 1000])
    table.rows = rows
    heavy, step, memory = (np.array([row[k] for row in rows], dtype=float) for k in (0, 4, 5))
    exponent = lambda values: math.log(values[-1] / values[0]) / math.log(heavy[-1] / heavy[0])
    last = lambda values: math.log(values[-1] / values[-2]) / math.log(heavy[-1] / heavy[-2])
    table.notes = [
        f"per sample, batches of {batch}; untrained but roughened generators of default size",
        f"a step grows with power {exponent(step):.2f} of the heavy atoms ({last(step):.2f} over the last doubling), "
        f"memory with {exponent(memory):.2f} ({last(memory):.2f})",
    ]
    return table


def measure(threads: int, seconds: float, quick: bool) -> list[Table]:
    """All tables of one number of threads, printed as they come."""
    torch.set_num_threads(threads)
    busy = f"load average {os.getloadavg()[0]:.1f} before this process began to work, on {os.cpu_count()} cores"
    names = ["systems/alanine_dipeptide.pdb", "tests/data/chignolin.pdb"]
    names, chains = (names[:1], CHAINS[:2]) if quick else (names, CHAINS)
    tables = []
    for table in (
        lambda: peers(names, seconds),
        lambda: zuko(names, seconds),
        lambda: growth(chains, seconds, 128),
    ):
        tables.append(table())
        tables[-1].notes.append(busy)
        print(tables[-1].markdown(), flush=True)
    return tables


def main() -> None:
    """Print the tables and write them; each number of threads in its own process, as torch fixes it at the start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each timing, over all rounds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = 0.5 if options.quick else options.seconds
    if options.part is not None:
        tables = measure(options.threads[0], seconds, options.quick)
        options.part.write_text(json.dumps([asdict(table) for table in tables]))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for threads in options.threads:
            print(f"# {threads} threads\n", flush=True)
            part = Path(folder) / f"{threads}.json"
            words = [
                sys.executable,
                __file__,
                "--threads",
                str(threads),
                "--seconds",
                str(seconds),
                "--part",
                str(part),
            ]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            subprocess.run(words + ["--quick"] * options.quick, check=True, env=environment)
            found[threads] = [Table(**table) for table in json.loads(part.read_text())]
            if not options.quick:
                write(found)


def write(found: dict[int, list[Table]]) -> None:
    """What has been measured so far."""
    where = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    parts = [f"# Speed of the flow\n\n{where}; `make bench-flow`\n"]
    for threads, tables in found.items():
        parts.append(f"# {threads} {'thread' if threads == 1 else 'threads'}\n")
        parts += [table.markdown() for table in tables]
    (RESULTS / "flow.md").write_text("\n".join(parts))
    content = {
        "where": where,
        "threads": {str(n): [table.as_dict() for table in tables] for n, tables in found.items()},
    }
    (RESULTS / "flow.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
