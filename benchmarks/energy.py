"""Accuracy and speed of the energy: a table for the closing notes.

    python benchmarks/energy.py [--threads 1] [--seconds 1.0] [--batch 4096]

Prints the largest difference of every term from OpenMM's Reference platform on 100 perturbed frames (float64), the
error of float32, and microseconds per configuration of an OpenMM loop, of eager and of compiled evaluation, within one
run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import torch

from boltzgen.energy import CompiledPotential, OpenMMPotential
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.molecule import Molecule

STRUCTURE = Path(__file__).resolve().parent.parent / "systems" / "alanine_dipeptide.pdb"


def accuracy(molecule: Molecule) -> None:
    """Largest differences from OpenMM Reference, by term."""
    candidates = perturbed_frames(molecule.positions, 200, seed=1)
    # Three quarters are moved by 0.01-0.03 nm; the others, moved by 0.1 nm, have energies up to 1e10 kJ/mol.
    frames = candidates[np.arange(200) % 4 != 3][:100]
    expected, forces = reference_terms(molecule.system, frames)
    potential = CompiledPotential(molecule, compile=False)
    positions = torch.from_numpy(frames)
    total = sum(expected.values())
    print(f"Compiled against OpenMM {openmm.__version__} Reference, 100 perturbed frames, float64, kJ/mol")
    print(f"  energies of the frames: {total.min():.0f} to {total.max():.3g}")
    for name, value in potential.terms(positions).items():
        print(f"  {name:<24s} {np.abs(value.numpy() - expected[name]).max():.1e}")
    energy, found = potential.energy_and_forces(positions)
    print(f"  {'total':<24s} {np.abs(energy.numpy() - total).max():.1e}")
    relative = np.abs(found.numpy() - forces).max(axis=(1, 2)) / np.abs(forces).max(axis=(1, 2))
    print(f"  {'forces, of the largest':<24s} {relative.max():.1e}")
    single = potential(positions.float()).double().numpy()
    print(f"  {'total in float32':<24s} {np.abs(single - total).max():.1e}")
    far = torch.from_numpy(candidates[3::4])
    expected, _ = reference_terms(molecule.system, far.numpy())
    error = np.abs(potential(far).numpy() - sum(expected.values())) / np.abs(sum(expected.values()))
    print(f"  50 frames moved by 0.1 nm, total relative to itself: {error.max():.1e}")


def microseconds(call: Callable[[], object], configurations: int, seconds: float) -> float:
    """Fastest call within a time, in microseconds per configuration."""
    call()
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return 1e6 * best / configurations


def openmm_loop(system: openmm.System, platform: str, frames: np.ndarray, forces: bool) -> Callable[[], object]:
    """The tightest loop over samples on the System as created."""
    properties = {"Threads": "1"} if platform == "CPU" else {}
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)

    def run() -> None:
        for frame in frames:
            context.setPositions(frame)
            state = context.getState(getEnergy=True, getForces=forces)
            if forces:
                state.getForces(asNumpy=True)

    return run


def speed(molecule: Molecule, batch: int, seconds: float) -> None:
    """Microseconds per configuration, within one run."""
    frames = perturbed_frames(molecule.positions, batch, seed=2)
    few = frames[:50]
    rows: list[tuple[str, list[float]]] = []
    for platform in ("Reference", "CPU"):
        calls = [openmm_loop(molecule.system, platform, few, forces) for forces in (False, True)]
        rows.append((f"OpenMM {platform}, System as created", [microseconds(c, 50, seconds) for c in calls]))
    bridge = OpenMMPotential(molecule)
    few_positions = torch.from_numpy(few)
    calls = [lambda: bridge(few_positions), lambda: bridge.energy_and_forces(few_positions)]
    rows.append((f"OpenMMPotential ({bridge.platform})", [microseconds(c, 50, seconds) for c in calls]))
    for dtype in (torch.float64, torch.float32):
        x = torch.from_numpy(frames).to(dtype)
        for mode in (False, True):
            potential = CompiledPotential(molecule, compile=mode)
            label = f"{'torch.compile' if mode else 'eager'}, {str(dtype)[6:]}, batch {batch}"
            calls = [lambda p=potential, x=x: p(x), lambda p=potential, x=x: p.energy_and_forces(x)]  # type: ignore[misc]
            rows.append((label, [microseconds(c, batch, seconds) for c in calls]))
            if potential.compile_reason:
                print(potential.compile_reason)
    best = [min(row[1][k] for row in rows[:2]) for k in (0, 1)]
    print(f"\n{'us per configuration':<44s}{'energy':>10s}{'ratio':>8s}{'+ forces':>10s}{'ratio':>8s}")
    for label, values in rows:
        cells = "".join(f"{value:10.2f}{fastest / value:8.0f}" for value, fastest in zip(values, best, strict=True))
        print(f"{label:<44s}{cells}")


def main() -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--batch", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    molecule = Molecule.from_pdb(STRUCTURE)
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    accuracy(molecule)
    speed(molecule, options.batch, options.seconds)


if __name__ == "__main__":
    main()
