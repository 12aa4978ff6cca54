"""Speed of the flow: against stacks in the designs of normflows and bgflow, against zuko's splines, and with the chain.

    make bench-flow                (some minutes on two cores; or: python benchmarks/flow.py [--threads 1])
    python benchmarks/flow.py --quick      (a minute: nothing is written)

Prints its tables and writes them to benchmarks/results/flow.md and flow.json. What is compared takes turns in one
process, and the shortest time of each counts. The row with zuko is there if zuko can be imported; the project does not
need it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from openmm import app, unit
from stacks import ChannelStack, CoupledSplineStack
from tables import Table, interleaved
from torch import Tensor, nn

from boltzgen.energy import CompiledPotential
from boltzgen.flows.splines import wrap
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = {"alanine_dipeptide": 768, "chignolin": 256}
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


def calls_of(flow: nn.Module, batch: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Sampling without gradient, density with gradient, and a training step of a detached loss without its energies."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.0)
    with torch.no_grad():
        positions = flow.sample_and_log_prob(batch)[0]

    def sample() -> None:
        with torch.no_grad():
            flow.sample_and_log_prob(batch)

    def density() -> None:
        optimizer.zero_grad(set_to_none=True)
        flow.log_prob(positions).mean().backward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            drawn = flow.sample_and_log_prob(batch)[0]
        flow.log_prob(drawn).mean().backward()
        optimizer.step()

    return sample, density, step


def size(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters())


def peers(names: list[str], seconds: float) -> Table:
    """Ours against stacks of as many layers, as wide, with as many bins."""
    table = Table(
        "A training step against stacks of the same size",
        ("molecule", "flow", "parameters", "sample, us", "density and gradient, us", "step, us", "step over ours"),
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
        calls = [(call, batch) for flow in flows.values() for call in calls_of(flow, batch)]
        times = np.array(interleaved(calls, seconds, ROUNDS)).reshape(len(flows), 3)
        for (label, flow), row in zip(flows.items(), times, strict=True):
            table.rows.append([Path(name).stem, label, size(flow), *map(float, row), float(row[2] / times[0, 2])])
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
def zuko_splines() -> Iterator[None]:
    """Our flow with the splines of zuko in the place of ours; slopes at the ends are one, as zuko has them."""
    from zuko.transforms import MonotonicRQSTransform

    def transform(raw: Tensor) -> MonotonicRQSTransform:
        n_bins = raw.shape[1] // 3
        widths, heights, slopes = raw[:, :-1].movedim(1, -1).split(n_bins, dim=-1)
        return MonotonicRQSTransform(widths, heights, slopes[..., 1:], bound=math.pi)

    def forward(angle: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        moved, log_derivative = transform(raw).call_and_ladj(wrap(angle))
        return wrap(moved + raw[:, -1]), log_derivative

    def inverse(angle: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return transform(raw).inv.call_and_ladj(wrap(angle - raw[:, -1]))

    with contextlib.ExitStack() as stack:
        for module in ("couplings", "hydrogens"):
            for name, function in (("circular_spline", forward), ("circular_spline_inverse", inverse)):
                stack.enter_context(mock.patch(f"boltzgen.flows.{module}.{name}", function))
        yield


def zuko(names: list[str], seconds: float) -> Table:
    """End to end: the same flow, the splines exchanged."""
    table = Table("Splines of zuko in our flow", ("molecule", "ours, us a step", "with zuko's, us a step", "ratio"))
    table.notes.append("zuko is used if a step is at most 1.3 times as long with it; larger: our own splines")
    if importlib.util.find_spec("zuko") is None:
        table.notes.append("zuko is not installed here: not measured")
        return table
    import zuko as package

    table.notes.append(f"zuko {package.__version__ if hasattr(package, '__version__') else ''}".strip())
    for name in names:
        flow = roughen(build(Molecule.from_pdb(ROOT / name)).flow)
        batch = BATCHES[Path(name).stem]
        step = calls_of(flow, batch)[2]

        def with_zuko(step: Callable[[], None] = step) -> None:
            with zuko_splines():
                step()

        ours, theirs = interleaved([(step, batch), (with_zuko, batch)], seconds, ROUNDS)
        table.rows.append([Path(name).stem, ours, theirs, theirs / ours])
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


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each timing, over all rounds")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ["systems/alanine_dipeptide.pdb", "tests/data/chignolin.pdb"]
    seconds, chains = (options.seconds, CHAINS) if not options.quick else (0.5, CHAINS[:2])
    names = names[:1] if options.quick else names
    tables = []
    for table in (
        lambda: peers(names, seconds),
        lambda: zuko(names, seconds),
        lambda: growth(chains, seconds, 128),
    ):
        tables.append(table())
        print(tables[-1].markdown(), flush=True)
        if not options.quick:
            write(tables, options.threads)


def write(tables: list[Table], threads: int) -> None:
    """What has been measured so far."""
    where = f"torch {torch.__version__}, {threads} threads, {platform.machine()}, {os.cpu_count()} cores"
    text = f"# Speed of the flow\n\n{where}\n\n" + "\n".join(table.markdown() for table in tables)
    (RESULTS / "flow.md").write_text(text)
    content = {"where": where, "tables": [table.as_dict() for table in tables]}
    (RESULTS / "flow.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
