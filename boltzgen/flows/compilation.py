"""torch.compile for the density and the samples of a flow, tried out before it is trusted."""

from __future__ import annotations

import contextlib
import logging
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from boltzgen.errors import BoltzgenError
from boltzgen.flows.molecular import MolecularFlow
from boltzgen.progress import shown_wait

if TYPE_CHECKING:
    from boltzgen.generator import Flow

__all__ = ["CompiledFlow"]

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative to the largest
OPTIONS: dict[str, Any] = {"cpp.threads": 1}  # two threads take longer to meet than such small kernels take
ONE_THREAD_BELOW = 1_000_000  # parameters; compiled steps of alanine dipeptide: 51 us a sample on one, 64 us on two
Function = TypeVar("Function", bound=Callable[..., Any])


class CompiledFlow:
    """The density of a flow with its gradient in the parameters, and samples without one, through torch.compile.

    Compilation takes one to three minutes on a CPU, more for long chains; ``make bench-flow`` says what it is worth.
    What it gives is compared with the eager results on samples of the flow. Where torch.compile cannot be used, or
    gives something else, or the flow does not separate its random numbers from the rest as `MolecularFlow` does, the
    function stays eager.

    Parameters
    ----------
    flow : Flow
    batch_size : int
        Configurations of a batch; for others it compiles again.

    Attributes
    ----------
    reason : str
        Why something stayed eager; empty otherwise.
    """

    def __init__(self, flow: Flow, batch_size: int) -> None:
        self._flow, self.reason = flow, ""
        self._density: Callable[[Tensor], Tensor] | None = None
        self._place: Callable[[Any], Tensor] | None = None
        parameters = [p for p in flow.parameters() if p.requires_grad]
        self._is_small = sum(p.numel() for p in parameters) < ONE_THREAD_BELOW
        stream = torch.Generator(parameters[0].device).manual_seed(0)
        try:
            # What is compiled for another number of threads, or without gradients, is compiled again when used.
            with (
                shown_wait("compiling the flow for torch, once (one to three minutes; less when cached)"),
                _threads(1 if self._is_small else None),
                torch.enable_grad(),
            ):
                self._compile_density(batch_size, stream, parameters)
                if isinstance(flow, MolecularFlow):
                    self._compile_samples(flow, batch_size, stream)
        except Exception as error:  # no compiler, no write permission, a bug in the compiler: all mean eager
            lines = str(error).strip().splitlines()
            self.reason = f"torch.compile cannot be used for the flow: {lines[0] if lines else type(error).__name__}"
            log.warning("%s; training without it", self.reason)

    def suited_threads(self) -> contextlib.AbstractContextManager[None]:
        """One thread for as long as this lasts, if the networks are so small that they are faster on one."""
        return _threads(1 if self._density is not None and self._is_small else None)

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log q (B,) of positions (B, N, 3) in nm."""
        log_q = self._flow.log_prob(positions) if self._density is None else self._density(positions)
        if self._density is not None and bool(torch.isnan(log_q).any()):  # eager splines take doubles where needed
            return self._flow.log_prob(positions)
        return log_q

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Positions (B, N, 3) in nm, without gradient: those of ``sample_and_log_prob`` up to rounding."""
        with torch.no_grad():
            if self._place is None:
                return self._flow.sample_and_log_prob(n_samples, generator)[0]
            assert isinstance(self._flow, MolecularFlow)
            base = self._flow.draw(n_samples, generator)
            return self._place(base)

    def _compile_density(self, batch_size: int, stream: torch.Generator, parameters: list[torch.nn.Parameter]) -> None:
        flow = self._flow

        def density(positions: Tensor) -> Tensor:
            return flow.log_prob(positions)

        compiled: Callable[[Tensor], Tensor] = torch.compile(_fresh(density), dynamic=False, options=OPTIONS)
        with torch.no_grad():
            positions, _ = flow.sample_and_log_prob(batch_size, stream)
        found = _with_gradient(compiled, positions, parameters)
        expected = _with_gradient(density, positions, parameters)
        for one, other in zip(expected, found, strict=True):
            _check(one, other, "density")
        self._density = compiled

    def _compile_samples(self, flow: MolecularFlow, batch_size: int, stream: torch.Generator) -> None:
        def place(base: Any) -> Tensor:
            return flow.place(base)[0]  # the density of the samples is dead code, which the compiler leaves out

        compiled: Callable[[Any], Tensor] = torch.compile(_fresh(place), dynamic=False, options=OPTIONS)
        with torch.no_grad():
            base = flow.draw(batch_size, stream)
            found, expected = compiled(base), place(base)
        _check(expected, found, "samples")
        self._place = compiled


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Threads of torch for as long as this lasts; as they are if None."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


def _fresh(function: Function) -> Function:
    """The function with a code object of its own: dynamo counts compilations by code object, and gives up at eight."""
    code = function.__code__.replace()
    copy = types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
    return cast("Function", copy)


def _check(expected: Tensor, found: Tensor, what: str) -> None:
    if not bool(((expected - found).abs() <= TOLERANCE[expected.dtype] * (1 + expected.abs().max())).all()):
        raise BoltzgenError(f"the compiled {what} differs from the eager one")


def _with_gradient(
    log_prob: Callable[[Tensor], Tensor], positions: Tensor, parameters: list[torch.nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Log q (B,), and the gradient of its mean square in all parameters, flat."""
    log_q = log_prob(positions)
    gradients = torch.autograd.grad(log_q.square().mean(), parameters, allow_unused=True)
    return log_q.detach(), torch.cat([g.flatten() for g in gradients if g is not None])
