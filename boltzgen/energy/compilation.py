"""torch.compile for a term program, tried out before it is trusted."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable

import torch
from torch import Tensor

from boltzgen.energy.program import TermProgram
from boltzgen.errors import PotentialError
from boltzgen.progress import shown_wait

__all__ = ["COMPILE_AFTER", "Evaluator", "compile_program"]

logger = logging.getLogger(__name__)

Evaluator = Callable[[Tensor], tuple[Tensor, Tensor | None]]

# Compilation takes 10-30 s and saves 2-4 us per configuration of a dipeptide (three components of 430 difference
# vectors): it has paid for itself after about 4e6 of those, and after as many numbers in other molecules.
COMPILE_AFTER = 5.2e9


def compile_program(program: TermProgram, n_atoms: int, batch: int, forces: bool) -> tuple[Evaluator, str]:
    """Compile a program for any batch size, and compare it with the eager result.

    Parameters
    ----------
    program : TermProgram
        On its device and in its precision.
    n_atoms, batch : int
        Shape of the batch that is tried.
    forces : bool
        Whether gradients are wanted.

    Returns
    -------
    evaluator, reason
        Function from (3, N, B) to energy and gradient. Where torch.compile cannot be used it is the eager one, and the
        reason says why; otherwise the reason is empty.
    """

    def eager(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return program.in_parts(x, forces)

    # A code object of its own: dynamo counts recompilations by code object, and gives up after eight.
    fresh = types.FunctionType(eager.__code__.replace(), eager.__globals__, "energy", None, eager.__closure__)
    try:
        compiled: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]] = torch.compile(
            fresh, dynamic=True, options={"assert_indirect_indexing": False}
        )
        # Not above the size of normal use: a random heap of atoms has huge energies, but they must agree all the same.
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, n_atoms, max(batch, 2), generator=generator).to(program.bonded.bond)
        what = "energy and forces" if forces else "energy"
        with torch.no_grad(), shown_wait(f"compiling the {what} for torch, once (up to a minute; less when cached)"):
            for expected, found in zip(eager(x), compiled(x), strict=True):
                _compare(expected, found)
    except Exception as error:  # no compiler, no write permission, a bug in the compiler: all mean eager
        lines = str(error).strip().splitlines()
        reason = f"torch.compile cannot be used: {lines[0] if lines else type(error).__name__}"
        logger.warning("%s; evaluating without it", reason)
        return lambda x: program(x, forces), reason

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, slopes, direct = compiled(x)
        return energy, program.by_atom(x, slopes, direct) if forces else None

    return evaluate, ""


def _compare(expected: Tensor | None, found: Tensor | None) -> None:
    if expected is None or found is None:
        return
    tolerance = 1e-3 if expected.dtype == torch.float32 else 1e-9
    scale = 1 + expected.abs().reshape(-1, expected.shape[-1]).amax(dim=0)
    if not bool(((expected - found).abs() <= tolerance * scale).all()):
        raise PotentialError("the compiled energy differs from the eager one")
