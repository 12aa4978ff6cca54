"""OpenMM's tabulated functions, as polynomial tables that torch evaluates.

A continuous function of OpenMM is a tensor product of cubic splines, natural or periodic, on a regular grid
(`SplineFitter.cpp`: the cross derivatives that it takes from splines of derivatives are those of the tensor
product). It is kept here as the coefficients of one polynomial per cell.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from boltzgen.energy.expressions.operations import Argument
from boltzgen.errors import PotentialError

__all__ = ["Tabulated", "tabulated_function"]


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A function given by a table.

    Its arrays are handed back to `evaluate` as tensors, so that the owner decides on device and precision.
    """

    arrays: tuple[np.ndarray, ...]
    """Continuous: one float64 array per monomial, powers of the first argument fastest, flattened cells (first
    index fastest). Discrete: the values."""
    shape: tuple[int, ...]
    """Number of cells (continuous) or of values (discrete) along each argument."""
    ranges: tuple[tuple[float, float], ...] = ()
    """Lowest and highest value of each argument; empty for a discrete function."""
    periodic: bool = False
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(repr((self.shape, self.ranges, self.periodic)).encode(), digest_size=16)
        for array in self.arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        object.__setattr__(self, "digest", digest.digest())

    @property
    def differentiable(self) -> bool:
        """False for a discrete function, whose derivative OpenMM takes to be zero."""
        return bool(self.ranges)

    def evaluate(self, arguments: Sequence[Argument], arrays: Sequence[Tensor], orders: tuple[int, ...]) -> Tensor:
        """Value, or a partial derivative, at `arguments`.

        Parameters
        ----------
        arguments : tensors or floats that broadcast together
        arrays : tensors
            `self.arrays`, on the device and in the precision of the result.
        orders : order of the derivative in each argument; 0 or 1
        """
        inputs = [torch.as_tensor(argument, dtype=arrays[0].dtype, device=arrays[0].device) for argument in arguments]
        if not self.ranges:
            return arrays[0][_flat([_rounded(x, size) for x, size in zip(inputs, self.shape, strict=True)], self.shape)]
        return self._polynomial(inputs, arrays, orders)

    def _polynomial(self, inputs: list[Tensor], arrays: Sequence[Tensor], orders: tuple[int, ...]) -> Tensor:
        cells, fractions = [], []
        outside = torch.zeros((), dtype=torch.bool, device=arrays[0].device)
        scale = 1.0
        for x, (low, high), size, order in zip(inputs, self.ranges, self.shape, orders, strict=True):
            t = (x - low) / (high - low)
            if self.periodic:
                t = t - t.floor()
            else:
                outside = outside | (x < low) | (x > high)  # false for NaN, which stays NaN
            cell = (t * size).floor().clamp(0, size - 1)
            cells.append(cell.nan_to_num(0.0).long())
            fractions.append(t * size - cell)
            scale *= (size / (high - low)) ** order
        index = _flat(cells, self.shape)
        value = _horner([array[index] for array in arrays], fractions, orders)
        return torch.where(outside, 0.0, value if scale == 1 else value * scale)


def _horner(terms: list[Tensor], fractions: list[Tensor], orders: tuple[int, ...]) -> Tensor:
    """Sum of terms times powers of the fractions, the powers of the first fraction fastest."""
    for x, order in zip(fractions, orders, strict=True):
        cubics = [terms[start : start + 4] for start in range(0, len(terms), 4)]
        if order == 0:
            terms = [a + x * (b + x * (c + x * d)) for a, b, c, d in cubics]
        else:
            terms = [b + x * (2.0 * c + x * (3.0 * d)) for _, b, c, d in cubics]
    return terms[0]


def _rounded(x: Tensor, size: int) -> Tensor:
    """Index nearest to `x`, halves away from zero as C's round() has it, kept within the table."""
    low = x.floor()
    return (low + (x - low >= 0.5).to(x.dtype)).clamp(0, size - 1).nan_to_num(0.0).long()


def _flat(indices: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Index into a flattened array, first index fastest."""
    flat = indices[-1]
    for index, size in zip(indices[-2::-1], shape[-2::-1], strict=True):
        flat = index + size * flat
    return flat


def tabulated_function(function: Any) -> Tabulated:
    """The table of an OpenMM `TabulatedFunction`.

    Raises
    ------
    PotentialError
        If it is of a kind that is not known, or periodic with unequal ends.
    """
    name = type(function).__name__
    if isinstance(function, openmm.Discrete1DFunction):
        values = np.array(function.getFunctionParameters(), dtype=float)
        return Tabulated((values,), (len(values),))
    if isinstance(function, openmm.Discrete2DFunction | openmm.Discrete3DFunction):
        *shape, values = function.getFunctionParameters()
        return Tabulated((np.array(values, dtype=float),), tuple(shape))
    if isinstance(function, openmm.Continuous1DFunction):
        values, *limits = function.getFunctionParameters()
        return _splines(np.array(values, dtype=float), limits, function.getPeriodic(), name)
    if isinstance(function, openmm.Continuous2DFunction):
        nx, ny, values, *limits = function.getFunctionParameters()
        return _splines(np.reshape(values, (nx, ny), order="F"), limits, function.getPeriodic(), name)
    if isinstance(function, openmm.Continuous3DFunction):
        nx, ny, nz, values, *limits = function.getFunctionParameters()
        return _splines(np.reshape(values, (nx, ny, nz), order="F"), limits, function.getPeriodic(), name)
    raise PotentialError(f"tabulated functions of kind {name} cannot be compiled; use OpenMM's own evaluation")


def _splines(values: np.ndarray, limits: list[float], periodic: bool, name: str) -> Tabulated:
    dimension = values.ndim
    ranges = tuple((float(limits[2 * axis]), float(limits[2 * axis + 1])) for axis in range(dimension))
    shape = tuple(size - 1 for size in values.shape)
    coefficients = values
    for axis, (low, high) in enumerate(ranges):
        # Each pass turns the first remaining axis of values into (power, cell), appended at the end.
        coefficients = _along_first_axis(coefficients, low, high, periodic, f"{name}, argument {axis + 1}")
    powers = itertools.product(*[range(4)] * dimension)  # last fastest, hence the reversal below
    # Axes are now (power 1, cell 1, power 2, cell 2, ...).
    arrays = [coefficients[tuple(p for power in reversed(key) for p in (power, slice(None)))] for key in powers]
    return Tabulated(tuple(array.ravel(order="F") for array in arrays), shape, ranges, periodic)


def _along_first_axis(values: np.ndarray, low: float, high: float, periodic: bool, what: str) -> np.ndarray:
    """Cubic splines along the first axis: (n, ...) values to (..., 4, n - 1) coefficients of the cell's fraction."""
    size = len(values)
    if periodic:
        if not np.allclose(values[0], values[-1], rtol=1e-12, atol=1e-12):
            raise PotentialError(f"{what}: the first and last values of a periodic function must be equal")
        values = np.concatenate([values[:-1], values[:1]])
    if size == 2:
        coefficients = np.zeros((4, 1, *values.shape[1:]))
        coefficients[0], coefficients[1] = values[:1], values[1:] - values[:1]
    else:
        grid = np.linspace(0.0, size - 1.0, size)  # unit cells, so that the polynomials are in the fraction
        coefficients = CubicSpline(grid, values, bc_type="periodic" if periodic else "natural").c[::-1]
    return np.moveaxis(coefficients, (0, 1), (-2, -1))
