"""The region that a reference and a generator share: chirality, and cis or trans at each amide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from openmm import unit

from boltzgen.sampling.flattened import torsion_angles

__all__ = ["domain_of"]


def domain_of(molecule: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The domain of a molecule's own structure.

    Inside are the configurations whose tetrahedral centres all have the handedness of the structure (labels of
    hydrogens included), and whose amides are all on the same side, |omega| above or below 90 degrees.

    Parameters
    ----------
    molecule : Molecule
        Its positions, topology and torsions define the domain.

    Returns
    -------
    callable
        From positions (n, N, 3) in nm to (n,) bool.
    """
    neighbours: dict[int, list[int]] = {}
    for first, second in molecule.topology.bonds():
        neighbours.setdefault(first.index, []).append(second.index)
        neighbours.setdefault(second.index, []).append(first.index)
    centres = np.array([sorted(row)[:3] + [row_of] for row_of, row in neighbours.items() if len(row) == 4]).reshape(
        -1, 4
    )
    amides = [atoms for name, atoms in molecule.torsions.items() if name.startswith("omega")]
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer), dtype=np.float64)[None]
    hands, sides = _handedness(positions, centres), _trans(positions, amides)

    def inside(frames: np.ndarray) -> np.ndarray:
        same_hand = (_handedness(frames, centres) == hands).all(axis=1)
        return np.asarray(same_hand & (_trans(frames, amides) == sides).all(axis=1))

    return inside


def _handedness(frames: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Whether three neighbours of each centre turn one way or the other, (n, centres)."""
    a, b, c = (frames[:, centres[:, k]] - frames[:, centres[:, 3]] for k in range(3))
    return np.einsum("nci,nci->nc", a, np.cross(b, c)) > 0


def _trans(frames: np.ndarray, amides: list[tuple[int, int, int, int]]) -> np.ndarray:
    if not amides:
        return np.ones((len(frames), 0), dtype=bool)
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(2, 1, 0)
    return np.abs(torsion_angles(x, amides).numpy().T) > 90
