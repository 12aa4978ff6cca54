"""Every loss by name, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import Tensor, nn

from boltzgen.losses.controlled import ControlledForwardKL
from boltzgen.losses.divergences import (
    estimator_variance,
    forward_kl,
    minibatch_kl,
    renyi_2,
    reverse_kl,
    weighted_forward_kl,
)
from boltzgen.losses.log_ratios import (
    TrajectoryBalance,
    log_variance,
    masked_log_variance,
    masked_log_variance_attached,
    vargrad,
)

__all__ = ["LOSSES", "Loss", "Objective", "data_free_loss", "find_loss"]

Objective = Callable[..., Tensor]
"""``(log_p, log_q) -> scalar``, both (B,); of an off-policy loss also ``n_fresh``, how many the present flow drew."""


@dataclass(frozen=True)
class Loss:
    """A loss by name, with what it needs.

    Attributes
    ----------
    name : str
    source : str
        Where the formula is from; equations and appendices are those of Felardos, Hénin, Charpiat (2022).
    samples : {"data", "detached", "reparametrised", "path"}
        Given configurations; samples of the generator without gradient, and log q at them; samples with their gradient;
        the same with log q from `path_log_prob`.
    function : callable, optional
        ``(log_p, log_q) -> scalar``, for a loss without a state.
    module : type, optional
        For a loss with a state: made from the parameters of the flow, and called in the same way.
    observable : bool
        ``log_p`` is log p + log |f| for a function f that the user gives.
    off_policy : bool
        Whether samples may come from elsewhere than the present flow: the loss then takes ``n_fresh`` too.
    """

    name: str
    source: str
    samples: Literal["data", "detached", "reparametrised", "path"]
    function: Objective | None = None
    module: Callable[[Sequence[nn.Parameter]], nn.Module] | None = None
    observable: bool = False
    off_policy: bool = False

    @property
    def detached(self) -> bool:
        """Whether samples carry no gradient."""
        return self.samples in ("data", "detached")

    @property
    def needs(self) -> Literal["data", "energies", "forces"]:
        """What is evaluated or given: data alone, energies alone, or energies with forces."""
        if self.samples == "data":
            return "data"
        return "energies" if self.samples == "detached" else "forces"

    def start(self, parameters: Sequence[nn.Parameter]) -> Objective:
        """The function to call on every batch of one training: a module where the loss has a state or learns.

        Parameters
        ----------
        parameters : sequence of Parameter
            Of the flow.
        """
        if self.function is not None:
            return self.function
        if self.module is None:
            raise TypeError(f"the loss {self.name!r} has neither a function nor a module")
        return self.module(parameters)


_ALL = (
    Loss("forward-kl", "equation 4", "data", forward_kl),
    Loss("reverse-kl", "equation 6", "reparametrised", reverse_kl),
    Loss("reverse-kl-path", "equation 6; Roeder et al. (2017)", "path", reverse_kl),
    Loss("weighted-forward-kl", "equation 7", "detached", weighted_forward_kl),
    Loss("estimator-variance", "equation 11", "detached", estimator_variance, observable=True),
    Loss("renyi-2", "equation 12", "detached", renyi_2),
    Loss("l2+", "equation 15", "detached", masked_log_variance, off_policy=True),
    Loss("l2+attached", "appendix H", "detached", masked_log_variance_attached),
    Loss("log-variance", "appendix H", "detached", log_variance, off_policy=True),
    Loss("vargrad", "Richter et al. (2020)", "detached", vargrad),
    Loss("minibatch-kl", "appendix I.1", "detached", minibatch_kl),
    Loss("controlled-forward-kl", "appendix I.2", "detached", module=ControlledForwardKL),
    Loss("trajectory-balance", "Malkin et al. (2022)", "detached", module=TrajectoryBalance, off_policy=True),
)

LOSSES = {loss.name: loss for loss in _ALL}


def find_loss(name: str) -> Loss:
    """A loss by name.

    Raises
    ------
    ValueError
        If there is none of that name; names the nearest one.
    """
    if name in LOSSES:
        return LOSSES[name]
    near = get_close_matches(str(name), LOSSES, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(LOSSES)}{hint}")


def data_free_loss(name: str, has_observable: bool = False) -> Loss:
    """A loss by name that can train on the energy alone.

    Parameters
    ----------
    has_observable : bool
        Whether a function f is given.

    Raises
    ------
    ValueError
        If there is none of that name, if it needs data, or if it needs an observable that is not given.
    """
    loss = find_loss(name)
    if loss.needs == "data":
        raise ValueError(f"the loss {name!r} needs data: use pretrain, or its data-free form 'weighted-forward-kl'")
    if loss.observable and not has_observable:
        raise ValueError(f"the loss {name!r} is the variance for one function f: give it as observable=f")
    return loss
