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
        Configurations of a batch; for others it compiles again, and compares again.

    Attributes
    ----------
    reason : str
        Why something stayed eager; empty otherwise.
    """

    def __init__(self, flow: Flow, batch_size: int) -> None:
        self._flow = flow
        self._parameters = [p for p in flow.parameters() if p.requires_grad]
        self._is_small = sum(p.numel() for p in self._parameters) < ONE_THREAD_BELOW

        def density(positions: Tensor) -> Tensor:
            return flow.log_prob(positions)

        self._density = _Compiled(density, self._compare_densities)
        self._place: _Compiled | None = None
        if isinstance(flow, MolecularFlow):

            def place(base: Any) -> Tensor:
                return flow.place(base)[0]  # the density of the samples is dead code, which the compiler leaves out

            self._place = _Compiled(place, self._compare_samples)
        with (
            shown_wait("compiling the flow for torch, once (one to three minutes; less when cached)"),
            # What is compiled for another number of threads, or without gradients, is compiled again when used.
            _threads(1 if self._is_small else None),
        ):
            for function in filter(None, (self._density, self._place)):
                function.of_size(batch_size)

    @property
    def reason(self) -> str:
        return "; ".join(dict.fromkeys(text for f in (self._density, self._place) if f for text in f.reasons))

    def suited_threads(self) -> contextlib.AbstractContextManager[None]:
        """One thread for as long as this lasts, if the networks are so small that they are faster on one."""
        return _threads(1 if self._density.is_used and self._is_small else None)

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log q (B,) of positions (B, N, 3) in nm."""
        density = self._density.of_size(len(positions))
        if density is not None:
            log_q: Tensor = density(positions)
            if not bool(torch.isnan(log_q).any()):  # eager splines take doubles where needed
                return log_q
        return self._flow.log_prob(positions)

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Positions (B, N, 3) in nm, without gradient: those of ``sample_and_log_prob`` up to rounding."""
        place = None if self._place is None else self._place.of_size(n_samples)
        with torch.no_grad():
            if place is None:
                return self._flow.sample_and_log_prob(n_samples, generator)[0]
            assert isinstance(self._flow, MolecularFlow)
            return cast(Tensor, place(self._flow.draw(n_samples, generator)))

    def _compare_densities(self, compiled: Callable[..., Any], batch_size: int) -> None:
        with torch.no_grad():
            positions, _ = self._flow.sample_and_log_prob(batch_size, self._stream())
        with torch.enable_grad():
            found = _with_gradient(compiled, positions, self._parameters)
            expected = _with_gradient(self._flow.log_prob, positions, self._parameters)
        for one, other in zip(expected, found, strict=True):
            _check(one, other, "density")

    def _compare_samples(self, compiled: Callable[..., Any], batch_size: int) -> None:
        assert isinstance(self._flow, MolecularFlow)
        with torch.no_grad():
            base = self._flow.draw(batch_size, self._stream())
            _check(self._flow.place(base)[0], compiled(base), "samples")

    def _stream(self) -> torch.Generator:
        return torch.Generator(self._parameters[0].device).manual_seed(0)


class _Compiled:
    """A function through torch.compile, for the batch sizes at which it gives what it gives without.

    Parameters
    ----------
    function : callable
    compare : callable
        Raises an error if a compiled function, given first, is wrong at a batch size, given second.
    """

    def __init__(self, function: Callable[..., Any], compare: Callable[[Callable[..., Any], int], None]) -> None:
        self._function, self._compare = function, compare
        self._compiled: Callable[..., Any] | None = None
        self._sizes: dict[int, str] = {}  # why it is not used at a batch size; empty where it is

    @property
    def reasons(self) -> list[str]:
        return [reason for reason in self._sizes.values() if reason]

    @property
    def is_used(self) -> bool:
        """Whether it is right at a batch size that was asked for."""
        return len(self.reasons) < len(self._sizes)

    def of_size(self, batch_size: int) -> Callable[..., Any] | None:
        """The compiled function, if it is right at a batch size; else None."""
        if batch_size not in self._sizes:
            self._sizes[batch_size] = self._try(batch_size)
        return None if self._sizes[batch_size] else self._compiled

    def _try(self, batch_size: int) -> str:
        try:
            if self._compiled is None:
                self._compiled = torch.compile(_fresh(self._function), dynamic=False, options=OPTIONS)
            self._compare(self._compiled, batch_size)
        except Exception as error:  # no compiler, no write permission, a bug in the compiler: all mean eager
            lines = str(error).strip().splitlines()
            reason = f"torch.compile cannot be used for the flow: {lines[0] if lines else type(error).__name__}"
            log.warning("%s; going on without it in batches of %d", reason, batch_size)
            return reason
        return ""


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
