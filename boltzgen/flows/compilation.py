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
from boltzgen.flows.base import Base
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
        self._flow, self.reason = flow, ""
        self._density: Callable[[Tensor], Tensor] | None = None
        self._place: Callable[[Any], Tensor] | None = None
        self._trusted = {"density": set[int](), "samples": set[int]()}  # batch sizes that were compared
        self._parameters = [p for p in flow.parameters() if p.requires_grad]
        self._is_small = sum(p.numel() for p in self._parameters) < ONE_THREAD_BELOW
        with (
            self._tried(),
            shown_wait("compiling the flow for torch, once (one to three minutes; less when cached)"),
            # What is compiled for another number of threads, or without gradients, is compiled again when used.
            _threads(1 if self._is_small else None),
            torch.enable_grad(),
        ):
            self._compile(batch_size)

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        """Whatever fails in here, no compiler, no write permission, a bug in the compiler, means eager."""
        try:
            yield
        except Exception as error:
            self._density = self._place = None
            lines = str(error).strip().splitlines()
            self.reason = f"torch.compile cannot be used for the flow: {lines[0] if lines else type(error).__name__}"
            log.warning("%s; going on without it", self.reason)

    def suited_threads(self) -> contextlib.AbstractContextManager[None]:
        """One thread for as long as this lasts, if the networks are so small that they are faster on one."""
        return _threads(1 if self._density is not None and self._is_small else None)

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log q (B,) of positions (B, N, 3) in nm."""
        if self._density is not None and len(positions) not in self._trusted["density"]:
            with self._tried():
                self._compare_density(positions.detach())
        if self._density is None:
            return self._flow.log_prob(positions)
        log_q = self._density(positions)
        if bool(torch.isnan(log_q).any()):  # eager splines take doubles where needed
            return self._flow.log_prob(positions)
        return log_q

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Positions (B, N, 3) in nm, without gradient: those of ``sample_and_log_prob`` up to rounding."""
        with torch.no_grad():
            if self._place is None:
                return self._flow.sample_and_log_prob(n_samples, generator)[0]
            assert isinstance(self._flow, MolecularFlow)
            base = self._flow.draw(n_samples, generator)
            if n_samples not in self._trusted["samples"]:
                with self._tried():
                    self._compare_samples(base)
            return self._flow.place(base)[0] if self._place is None else self._place(base)

    def _compile(self, batch_size: int) -> None:
        flow, stream = self._flow, torch.Generator(self._parameters[0].device).manual_seed(0)

        def density(positions: Tensor) -> Tensor:
            return flow.log_prob(positions)

        self._density = torch.compile(_fresh(density), dynamic=False, options=OPTIONS)
        with torch.no_grad():
            positions, _ = flow.sample_and_log_prob(batch_size, stream)
        self._compare_density(positions)
        if not isinstance(flow, MolecularFlow):
            return

        def place(base: Any) -> Tensor:
            return flow.place(base)[0]  # the density of the samples is dead code, which the compiler leaves out

        self._place = torch.compile(_fresh(place), dynamic=False, options=OPTIONS)
        with torch.no_grad():
            self._compare_samples(flow.draw(batch_size, stream))

    def _compare_density(self, positions: Tensor) -> None:
        assert self._density is not None
        with torch.enable_grad():
            found = _with_gradient(self._density, positions, self._parameters)
            expected = _with_gradient(self._flow.log_prob, positions, self._parameters)
        for one, other in zip(expected, found, strict=True):
            _check(one, other, "density")
        self._trusted["density"].add(len(positions))

    def _compare_samples(self, base: Base) -> None:
        assert self._place is not None
        assert isinstance(self._flow, MolecularFlow)
        _check(self._flow.place(base)[0], self._place(base), "samples")
        self._trusted["samples"].add(base.stiff.shape[1])


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
