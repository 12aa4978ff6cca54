"""Distances, angles and dihedrals of a batch, with their derivatives, in a batch-last layout.

Everything here works on difference vectors of shape (3, n, B): the batch is the fastest index, so that each operation
is vectorised over samples and picking an atom is a copy of contiguous memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["angle", "angle_gradient", "cross", "dihedral", "dihedral_gradient", "dot"]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product over the first axis, (3, n, B) -> (n, B)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Vector product over the first axis, (3, n, B)."""
    return torch.stack(
        (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]),
    )


def angle(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle between two vectors from the same atom, accurate also near 0 and pi.

    Parameters
    ----------
    u, v : (3, n, B) tensors
        nm.

    Returns
    -------
    theta, normal, length : (n, B), (3, n, B), (n, B) tensors
        The angle in radians, u x v in nm^2 and its length, for `angle_gradient`.
    """
    normal = cross(u, v)
    length = torch.sqrt(dot(normal, normal))
    return torch.atan2(length, dot(u, v)), normal, length


def angle_gradient(u: Tensor, v: Tensor, normal: Tensor, length: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of an energy with respect to u and v, given its slope dE/dtheta (n, B)."""
    # Below 1e-6 nm^2 the direction is undefined; OpenMM's Reference platform uses the same floor.
    scaled = slope / length.clamp(min=1e-6)
    return cross(u, normal) * (scaled / _square(u)), cross(v, normal) * (-scaled / _square(v))


def dihedral(b1: Tensor, b2: Tensor, b3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cosine and sine of the dihedral of three consecutive bond vectors (IUPAC sign).

    Parameters
    ----------
    b1, b2, b3 : (3, n, B) tensors
        x_j - x_i, x_k - x_j, x_l - x_k in nm.

    Returns
    -------
    cosine, sine, m, n, length : (n, B), (n, B), (3, n, B), (3, n, B), (n, B) tensors
        With m = b1 x b2, n = b2 x b3 in nm^2 and length = |b2| in nm, for `dihedral_gradient`.

    References
    ----------
    Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996).
    """
    m, n = cross(b1, b2), cross(b2, b3)
    length = torch.sqrt(_square(b2))  # never quite zero, for autograd
    x, y = dot(m, n), length * dot(b1, n)
    norm = torch.rsqrt((x * x + y * y).clamp(min=_tiny(x)))
    return x * norm, y * norm, m, n, length


def dihedral_gradient(
    b1: Tensor, b2: Tensor, b3: Tensor, m: Tensor, n: Tensor, length: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of an energy with respect to b1, b2 and b3, given its slope dE/dphi (n, B).

    The three follow from the atomic gradients of Blondel and Karplus (equation 27): the gradient of b1 is minus that
    of the first atom, the gradient of b3 is that of the last.
    """
    inverse = 1 / length.clamp(min=1e-9)
    g1 = m * (slope * length / _square(m))
    g3 = n * (slope * length / _square(n))
    ratio = inverse * inverse
    g2 = -(g1 * (dot(b1, b2) * ratio) + g3 * (dot(b3, b2) * ratio))
    return g1, g2, g3


def _square(v: Tensor) -> Tensor:
    return dot(v, v).clamp(min=_tiny(v))


def _tiny(x: Tensor) -> float:
    return 1e-30 if x.dtype == torch.float32 else 1e-60
