"""What has to be measured in a process of its own: compilation at the first call, and memory against batch size.

    python benchmarks/fresh_process.py first-call STRUCTURE
    python benchmarks/fresh_process.py scaling STRUCTURE [--threads 1] [--seconds 1] [--batches 1024 4096 16384]

Prints one line of JSON; `benchmarks/energy.py` makes tables of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tables import interleaved

from boltzgen.energy import CompiledPotential
from boltzgen.energy.verify import perturbed_frames
from boltzgen.molecule import Molecule


def first_call(molecule: Molecule) -> dict[str, float]:
    """Seconds of the first compiled call for energies, and for energies and forces."""
    x = torch.from_numpy(perturbed_frames(molecule.positions, 1024, seed=2)).float()
    potential = CompiledPotential(molecule, compile=True)
    seconds = {}
    for name, call in (("energy", potential), ("forces", potential.energy_and_forces)):
        begin = time.perf_counter()
        call(x)
        seconds[name] = time.perf_counter() - begin
    return seconds


def scaling(molecule: Molecule, batches: list[int], seconds: float) -> dict[str, Any]:
    """Microseconds per configuration and memory in MiB for each batch size, float32, compiled."""
    potential = CompiledPotential(molecule, compile=True)
    x = torch.from_numpy(perturbed_frames(molecule.positions, max(batches), seed=2)).float()
    for call in (potential, potential.energy_and_forces):
        call(x[:64])
    memory = [peak_memory(potential, x[:batch]) for batch in batches]
    calls = [(lambda n=n: potential.energy_and_forces(x[:n]), n) for n in batches]
    small = batches[0]
    energy, *both = interleaved([(lambda: potential(x[:small]), small), *calls], seconds, rounds=3)
    return {"atoms": potential.n_atoms, "energy": energy, "forces": both, "memory": memory}


def peak_memory(potential: CompiledPotential, x: torch.Tensor) -> tuple[float, float] | None:
    """Resident memory of the process at its highest during one call with forces, and size of its results, in MiB.

    None where the system does not tell (Linux does).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        energy, forces = potential.energy_and_forces(x)
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return peak / 1024, (energy.nbytes + forces.nbytes) / 1024**2


def main() -> None:
    """Read the options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("first-call", "scaling"))
    parser.add_argument("structure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096, 16384])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    molecule = Molecule.from_pdb(options.structure)
    if options.what == "first-call":
        result: dict[str, Any] = first_call(molecule)
    else:
        result = scaling(molecule, options.batches, options.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
