"""OpenMM's custom-force expressions: parsed, differentiated, and evaluated by torch."""

from boltzgen.energy.expressions.expression import Expression, parse_expression
from boltzgen.energy.expressions.program import ExpressionProgram
from boltzgen.energy.expressions.tabulated import Tabulated, tabulated_function

__all__ = ["Expression", "ExpressionProgram", "Tabulated", "parse_expression", "tabulated_function"]
