"""How exact the compiled energy is: by term against OpenMM's Reference platform, in both precisions."""

from __future__ import annotations

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from tables import Table

from boltzgen.energy import CompiledPotential
from boltzgen.energy.program import TermProgram
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.molecule import Molecule

__all__ = ["SEED", "accuracy"]

SEED = 1
Floats = NDArray[np.float64]


def accuracy(name: str, molecule: Molecule) -> Table:
    """Largest differences from OpenMM's Reference platform by term, float64 and float32."""
    frames = accuracy_frames(molecule)
    expected, forces = reference_terms(molecule.system, frames)
    total = np.sum(list(expected.values()), axis=0)
    moderate = np.abs(total) < 1e4
    potential = CompiledPotential(molecule, compile=False, verify=False)
    x = torch.from_numpy(frames)
    double = {key: value.numpy() for key, value in potential.terms(x).items()}
    single = {key: value.double().numpy() for key, value in potential.terms(x.float()).items()}
    table = Table(
        f"Accuracy: {name}",
        ("term", "float64, kJ/mol", "float64, relative", "float32, kJ/mol", "float32, of the contributions"),
    )

    def row(label: str, found: Floats, rough: Floats, reference: Floats, scale: Floats) -> None:
        difference, rough_difference = np.abs(found - reference), np.abs(rough - reference)
        values = [
            difference[moderate].max(),
            (difference / np.maximum(np.abs(reference), 1)).max(),
            rough_difference[moderate].max(),
            (rough_difference / scale).max(),
        ]
        table.rows.append([label, *map(float, values)])

    sums = {key: absolute_sum(potential, key, x) for key in double}
    for key in double:
        row(key, double[key], single[key], expected[key], sums[key])
    energy, found = potential.energy_and_forces(x)
    rough = potential(x.float()).double().numpy()
    row("total", energy.numpy(), rough, total, np.sum(list(sums.values()), axis=0))
    error = np.abs(found.numpy() - forces).max(axis=(1, 2)) / np.abs(forces).max(axis=(1, 2))
    table.notes = [
        f"Against OpenMM {openmm.__version__} Reference on {len(frames)} perturbed frames of "
        f"{total.min():.0f} to {total.max():.3g} kJ/mol; columns in kJ/mol: the {moderate.sum()} below 1e4.",
        "Relative: to the energy, or to 1 kJ/mol if that is more. Contributions: the sum of their "
        "absolute values; where a single map (CMAP) passes through zero, so does it.",
        "Aims: 1e-6 kJ/mol per term in float64; in float32 1e-5 of the contributions per term, and 0.02 in the total.",
        f"Forces, float64: {error.max():.1e} of the largest component of the frame.",
    ]
    return table


def accuracy_frames(molecule: Molecule) -> Floats:
    """(100, N, 3) in nm: half moved by 0.01 to 0.1 nm, half by 0.002 to 0.012 nm, which stay near the minimum.

    Rounded to float32, so that both precisions see the same positions.
    """
    wide = perturbed_frames(molecule.positions, 50, seed=SEED)
    random = np.random.default_rng(SEED)
    width = random.uniform(0.002, 0.012, (50, 1, 1))
    near = np.asarray(molecule.positions._value) + width * random.normal(size=wide.shape)
    return np.concatenate((wide, near)).astype(np.float32).astype(np.float64)


def absolute_sum(potential: CompiledPotential, term: str, x: torch.Tensor) -> Floats:
    """Sum of the absolute contributions to one term, (B,) in kJ/mol; a pair counts once, not by its parts."""
    program = TermProgram(potential._tables[term], potential.n_atoms).double()
    positions = x.permute(2, 1, 0).contiguous()
    with torch.no_grad():
        parts = list(program.bonded.interactions(positions).values())
        parts += [part.interactions(positions) for part in program.custom]  # type: ignore[operator]
        for part in program.over_pairs:
            by_atom = getattr(part, "by_atom", None)  # generalized Born: shares of atoms
            parts.append(by_atom(positions) if by_atom else part.interactions(positions))  # type: ignore[operator]
        return np.asarray(sum(part.abs().sum(0) for part in parts) + 1e-300 + abs(program.constant))
