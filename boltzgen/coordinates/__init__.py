"""Internal coordinates: which ones, how they are bounded, and the exact map to positions and back."""

from boltzgen.coordinates.chart import CoordinateChart, CoordinateRow
from boltzgen.coordinates.internal import InternalCoordinates
from boltzgen.coordinates.zmatrix import ZMatrix

__all__ = ["CoordinateChart", "CoordinateRow", "InternalCoordinates", "ZMatrix"]
