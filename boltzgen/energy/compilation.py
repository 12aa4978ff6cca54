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


def compile_program(
    program: TermProgram, n_atoms: int, batch: int, forces: bool, frames: Tensor | None = None
) -> tuple[Evaluator, str]:
    """Compile a program for any batch size, and compare it with the eager result.

    Parameters
    ----------
    program : TermProgram
        On its device and in its precision.
    n_atoms, batch : int
        Shape of the batch that is tried.
    forces : bool
        Whether gradients are wanted.
    frames : (F, N, 3) tensor, optional
        nm; plausible configurations. Without them only a random heap of atoms is tried, whose stretches and overlaps
        are so large that the other terms are lost in their rounding.

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
        # Not above the size of normal use.
        x = _trial(n_atoms, max(batch, 2), frames).to(program.bonded.bond)
        what = "energy and forces" if forces else "energy"
        with torch.no_grad(), shown_wait(f"compiling the {what} for torch, once (up to a minute; less when cached)"):
            (energy, *gradients), (found, *found_gradients) = eager(x), compiled(x)
            _compare(energy, found, program.absolute(x))
            for expected, gradient in zip(gradients, found_gradients, strict=True):
                if expected is not None and gradient is not None:
                    _compare(expected, gradient, expected.abs().reshape(-1, expected.shape[-1]).amax(dim=0))
    except Exception as error:  # no compiler, no write permission, a bug in the compiler: all mean eager
        lines = str(error).strip().splitlines()
        reason = f"torch.compile cannot be used: {lines[0] if lines else type(error).__name__}"
        logger.warning("%s; evaluating without it", reason)
        return lambda x: program(x, forces), reason

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, slopes, direct = compiled(x)
        return energy, program.by_atom(x, slopes, direct) if forces else None

    return evaluate, ""


def _trial(n_atoms: int, batch: int, frames: Tensor | None) -> Tensor:
    """Coordinates (3, N, batch) to try: every second one from the frames, the others random heaps of atoms."""
    x = torch.randn(3, n_atoms, batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if frames is not None:
        plausible = x[:, :, ::2]
        plausible.copy_(frames[torch.arange(plausible.shape[2]) % len(frames)].permute(2, 1, 0))
    return x


def _compare(expected: Tensor, found: Tensor, scale: Tensor) -> None:
    """Two orders of additions differ by some roundings of the largest contribution, the scale (B,)."""
    tolerance = 3e-5 if expected.dtype == torch.float32 else 1e-10
    within = (expected - found).abs() <= tolerance * (1 + scale)
    if not bool((within | ~torch.isfinite(scale)).all()):
        raise PotentialError("the compiled energy differs from the eager one")
