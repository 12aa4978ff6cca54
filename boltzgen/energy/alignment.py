"""The alignment penalty, which keeps a generator of Cartesian coordinates from spending itself on rigid motion.

A molecule's energy does not change when it is moved as a whole, so exp(-beta U) over all 3N coordinates cannot be
normalised. Felardos et al. (2022, sections 2 and 5) therefore add "an L2 distance between generated coordinates and
their image after a roto-translational alignment to some reference [...] we cap the maximum allowed rotation by pi/3",
times lambda = 10.

Let X be the positions and c their centroid, Y the reference and d its centroid, and R the rotation that minimises
``sum_i |R (x_i - c) - (y_i - d)|^2``, with axis n and angle theta. The image of x_i is ``R' (x_i - c) + d``, where R'
turns about n by theta' = min(theta, pi/3). Centred coordinates sum to zero, so the squared distance, summed over the M
atoms as the squared norm of a vector of 3M coordinates, falls into a translation and a rotation,

    M |c - d|^2 + 4 sin^2(theta'/2) n.I.n,        I = sum_i |x_i - c|^2 1 - (x_i - c)(x_i - c)^T.

The target of a Cartesian generator is exp(-beta U - lambda D^2): the penalty is dimensionless and independent of the
temperature. The paper leaves open the unit of length and whether the distance is squared, summed or averaged; here it
is the squared sum in nm^2, so lambda is in nm^-2. That choice matters: over all orientations of the heavy atoms of
ACE-ALA-NME 80 % of the weight lies beyond a cap of pi/3 at lambda = 10 nm^-2, where the penalty is flat, and none at
1000 nm^-2, which is 10 per square angstrom; of the four carbons of butane, 93 % and 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy.rotation_average import log_rotation_average
from boltzgen.errors import PotentialError

__all__ = ["AlignmentPenalty"]

# Below this share of the largest possible eigenvalue two eigenvalues count as equal: the best rotation is undetermined
# (collinear atoms), and the penalty is taken as constant along the undetermined direction.
DEGENERATE = 1e-10


class AlignmentPenalty:
    """``lambda D^2`` with D the distance from the positions to their image aligned to a reference.

    Parameters
    ----------
    reference : (M, 3) array or tensor
        nm; at least three atoms, not on one line.
    strength : float
        lambda, in nm^-2.
    max_angle : float
        Largest rotation of the image in radians, at most pi (no cap).
    atoms : sequence of M int, optional
        The atoms that are aligned, in the order of the reference; all if absent.

    Raises
    ------
    PotentialError
        If the reference defines no orientation, or a number is out of range.
    """

    def __init__(
        self,
        reference: np.ndarray | Tensor,
        strength: float = 10.0,
        max_angle: float = math.pi / 3,
        atoms: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.reference = _checked_reference(reference)
        if not (math.isfinite(strength) and strength > 0):
            raise PotentialError(f"the strength must be a positive number in nm^-2, not {strength}")
        if not 0 < max_angle <= math.pi:
            raise PotentialError(f"max_angle must lie between 0 and pi radians, not {max_angle}")
        self.strength, self.max_angle = strength, max_angle
        self.atoms = None if atoms is None else torch.as_tensor(np.asarray(atoms, dtype=np.int64))
        if self.atoms is not None and (
            len(self.atoms.unique()) != len(self.reference)
            or len(self.atoms) != len(self.reference)
            or int(self.atoms.min()) < 0
        ):
            raise PotentialError(
                f"atoms must name {len(self.reference)} different atoms, one for each row of the reference, "
                f"not {self.atoms.tolist()}"
            )

    def __call__(self, positions: Tensor) -> Tensor:
        """Penalty of a batch, differentiable once.

        Parameters
        ----------
        positions : (B, N, 3) tensor
            nm, float32 or float64, any device; evaluated in float64.

        Returns
        -------
        (B,) tensor
            Dimensionless, to be added to U/kT; NaN with zero gradient where coordinates are not finite.

        Raises
        ------
        PotentialError
            Wrong shape or dtype.
        """
        self._check(positions)
        penalty: Tensor = _Penalty.apply(positions, self)
        return penalty

    def angle(self, positions: Tensor) -> Tensor:
        """Angle (B,) in radians, from 0 to pi, of the rotation that aligns best; not capped."""
        q, _, _ = self._best_rotation(self._centred(positions)[0])
        return 2 * torch.atan2(q[:, 1:].norm(dim=1), q[:, 0].abs()).to(positions.dtype)

    def rotation(self, positions: Tensor) -> Tensor:
        """Matrices (B, 3, 3), float64, of rotations R that bring ``R (x_i - c)`` next to ``y_i - d``; not capped."""
        w, x, y, z = self._best_rotation(self._centred(positions)[0])[0].unbind(1)
        entries = [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ]
        return torch.stack(entries, dim=1).unflatten(1, (3, 3))

    def image(self, positions: Tensor) -> Tensor:
        """The aligned image (B, M, 3) in nm, its rotation capped."""
        x, _ = self._centred(positions)
        q, _, _ = self._best_rotation(x)
        q = torch.where(q[:, :1] < 0, -q, q)
        half = torch.atan2(q[:, 1:].norm(dim=1), q[:, 0]).clamp(max=self.max_angle / 2)[:, None, None]
        axis = torch.nn.functional.normalize(q[:, 1:], dim=1).unsqueeze(1).expand_as(x)
        along = (axis * x).sum(2, keepdim=True) * axis
        turned = along + torch.cos(2 * half) * (x - along) + torch.sin(2 * half) * torch.linalg.cross(axis, x)
        return (turned + self.reference.to(x).mean(0)).to(positions.dtype)

    def log_rotation_integral(self, positions: Tensor) -> Tensor:
        """Log of g(x): the mean of exp(-penalty) over all rotations of a conformation about its centroid.

        Populations of exp(-beta U - lambda D^2) become those of exp(-beta U) when each weight is divided by g. It is
        independent of the orientation of x: of all that turns with it, only the moments of inertia enter (see
        `boltzgen.energy.rotation_average`). Translations give the same factor for every x, `log_translation_integral`.

        Parameters
        ----------
        positions : (B, N, 3) tensor
            nm.

        Returns
        -------
        (B,) float64 tensor
            With respect to the uniform measure on rotations, whose total is 1; NaN where coordinates are not finite.
            Without gradient.
        """
        with torch.no_grad():
            x, _ = self._centred(positions)
            inertia = _inertia(x)
            finite = torch.isfinite(inertia).flatten(1).all(1)
            identity = torch.eye(3, dtype=x.dtype, device=x.device)
            moments = torch.linalg.eigvalsh(torch.where(finite[:, None, None], inertia, identity)).clamp(min=0)
            value = log_rotation_average(self.strength * moments, self.max_angle)
            return torch.where(finite, value, torch.nan)

    @property
    def log_translation_integral(self) -> float:
        """Log of the integral of exp(-lambda M |t|^2) over translations t, ``(pi / (lambda M))^(3/2)`` in nm^3."""
        return 1.5 * math.log(math.pi / (self.strength * len(self.reference)))

    def value_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Penalty (B,) and its gradient (B, N, 3) in 1/nm, without autograd."""
        self._check(positions)
        x, centroid = self._centred(positions.detach())
        q, others, gaps = self._best_rotation(x)
        v, inertia = q[:, 1:], _inertia(x)
        # v = n sin(theta/2), so sin^2(theta'/2) n.I.n = share * v.I.v: smooth at theta = 0, and at pi, where n flips.
        sine_squared = v.square().sum(1, keepdim=True)
        limit = math.sin(self.max_angle / 2) ** 2
        capped = sine_squared > limit
        share = torch.where(capped, limit / sine_squared.clamp(min=limit), torch.ones_like(sine_squared))
        moment_v = (inertia @ v.unsqueeze(2)).squeeze(2)
        rotation = share.squeeze(1) * (v * moment_v).sum(1)
        shift = centroid - self.reference.to(x).mean(0)
        value = 4 * rotation + len(self.reference) * shift.square().sum(1)

        at_fixed_axis = 8 * share.unsqueeze(2) * (sine_squared.unsqueeze(2) * x - (x @ v.unsqueeze(2)) * v.unsqueeze(1))
        by_axis = 8 * share * moment_v
        by_axis = torch.where(
            capped, by_axis - 8 * (rotation.unsqueeze(1) / sine_squared.clamp(min=limit)) * v, by_axis
        )
        gradient = at_fixed_axis + self._through_rotation(by_axis, q, others, gaps) + 2 * shift.unsqueeze(1)
        return self._assemble(positions, value, gradient)

    def _through_rotation(self, by_axis: Tensor, q: Tensor, others: Tensor, gaps: Tensor) -> Tensor:
        """Chain rule from v to the positions: perturbation theory of the top eigenvector of `_quaternion_matrix`."""
        usable = gaps > 0
        coefficient = torch.where(
            usable, (others[:, 1:] * by_axis.unsqueeze(2)).sum(1) / torch.where(usable, gaps, 1.0), 0.0
        )
        w = (others @ coefficient.unsqueeze(2)).squeeze(2)
        by_overlap = torch.einsum("ni,abij,nj->nab", w, HORN.to(q), q)
        y = self.reference.to(q)
        return torch.einsum("nab,mb->nma", by_overlap, y - y.mean(0))

    def _assemble(self, positions: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, put the aligned atoms back among all atoms, and mark samples with bad coordinates."""
        finite = torch.isfinite(self._selected(positions)).flatten(1).all(1)
        value = torch.where(finite, torch.nan_to_num(value, nan=torch.inf), torch.nan)
        good = (finite & torch.isfinite(gradient).flatten(1).all(1) & torch.isfinite(value))[:, None, None]
        scaled = torch.where(good, self.strength * gradient, 0.0).to(positions.dtype)
        if self.atoms is None:
            return (self.strength * value).to(positions.dtype), scaled
        full = torch.zeros_like(positions)
        full[:, self.atoms.to(positions.device)] = scaled
        return (self.strength * value).to(positions.dtype), full

    def _best_rotation(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quaternion (B, 4) of the best rotation, the other eigenvectors (B, 4, 3) in columns, their gaps (B, 3).

        Gaps that are zero within rounding come back as 0. Samples that are not finite get the identity.
        """
        y = self.reference.to(x)
        y = y - y.mean(0)
        matrix = torch.einsum("nma,mb,abij->nij", x, y, HORN.to(x))
        finite = torch.isfinite(matrix).flatten(1).all(1)
        identity = torch.diag(x.new_tensor([1.0, 0, 0, 0]))
        eigenvalues, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrix, identity))
        gaps = eigenvalues[:, 3:] - eigenvalues[:, :3]
        size = x.flatten(1).norm(dim=1, keepdim=True) * y.norm()
        return vectors[:, :, 3], vectors[:, :, :3], torch.where(gaps > DEGENERATE * size, gaps, 0.0)

    def _centred(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned atoms relative to their centroid (B, M, 3), and the centroid (B, 3), in float64."""
        self._check(positions)
        x = self._selected(positions).double()
        centroid = x.mean(1)
        return x - centroid.unsqueeze(1), centroid

    def _selected(self, positions: Tensor) -> Tensor:
        return positions if self.atoms is None else positions[:, self.atoms.to(positions.device)]

    def _check(self, positions: Tensor) -> None:
        if not isinstance(positions, Tensor) or positions.dtype not in (torch.float32, torch.float64):
            kind = getattr(positions, "dtype", type(positions).__name__)
            raise PotentialError(f"positions must be a float32 or float64 tensor in nm, not {kind}")
        enough = len(self.reference) if self.atoms is None else int(self.atoms.max()) + 1
        fits = positions.ndim == 3 and positions.shape[2] == 3
        if not fits or (positions.shape[1] != enough if self.atoms is None else positions.shape[1] < enough):
            expected = f"{enough}" if self.atoms is None else f"at least {enough}"
            raise PotentialError(f"positions must have shape (B, {expected}, 3), but have {tuple(positions.shape)}")

    def __repr__(self) -> str:
        return (
            f"AlignmentPenalty({len(self.reference)} atoms, strength={self.strength:g} nm^-2, "
            f"max_angle={math.degrees(self.max_angle):g} degrees)"
        )


class _Penalty(torch.autograd.Function):
    """The penalty, with its gradient kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, penalty: AlignmentPenalty) -> Tensor:
        value, gradient = penalty.value_and_gradient(positions)
        ctx.save_for_backward(positions, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _GradientProduct.apply(grad, *ctx.saved_tensors), None


class _GradientProduct(torch.autograd.Function):
    """The gradient times the incoming one. It takes the positions so that a second derivative cannot pass as zero."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, positions: Tensor, gradient: Tensor) -> Tensor:
        # A bad sample has a zero gradient, which stays zero when the incoming one is NaN.
        return torch.where(gradient == 0, gradient, grad[:, None, None] * gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise PotentialError("second derivatives of the alignment penalty are not available")


def _checked_reference(reference: np.ndarray | Tensor) -> Tensor:
    values = torch.as_tensor(reference).detach().to(device="cpu", dtype=torch.float64)
    if values.ndim != 2 or values.shape[1] != 3 or not bool(torch.isfinite(values).all()):
        raise PotentialError(f"the reference must be finite, of shape (M, 3), in nm, but has {tuple(values.shape)}")
    extents = torch.linalg.svdvals(values - values.mean(0)) if len(values) > 2 else torch.zeros(2)
    if float(extents[1]) <= 1e-6 * float(extents[0]):
        raise PotentialError("the reference needs at least three atoms that are not on one line to define a rotation")
    return values


def _inertia(x: Tensor) -> Tensor:
    """Moment of inertia (B, 3, 3) in nm^2 of centred positions, each atom with mass 1."""
    second = x.transpose(1, 2) @ x
    trace = second.diagonal(dim1=1, dim2=2).sum(1)
    return trace[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device) - second


def _horn() -> Tensor:
    """Horn's (1987) symmetric matrix as a linear map: (3, 3, 4, 4), to be summed with the overlap sum_i x_i y_i^T.

    The unit quaternion that turns x onto y best is the eigenvector of the largest eigenvalue.
    """
    n = torch.zeros(3, 3, 4, 4)
    for a in range(3):
        n[a, a] = torch.diag(torch.tensor([1.0] + [1.0 if i == a else -1.0 for i in range(3)]))
        b, c = (a + 1) % 3, (a + 2) % 3
        n[b, c, 0, a + 1] = n[b, c, a + 1, 0] = 1
        n[c, b, 0, a + 1] = n[c, b, a + 1, 0] = -1
        n[b, c, b + 1, c + 1] = n[b, c, c + 1, b + 1] = 1
        n[c, b, b + 1, c + 1] = n[c, b, c + 1, b + 1] = 1
    return n


HORN = _horn()
