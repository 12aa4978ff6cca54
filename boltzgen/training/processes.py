"""Sharing each batch between processes, as ``torchrun`` starts them.

Every process draws and evaluates its part of a batch. The log-ratios are gathered, so that each process computes the
loss of the whole batch (L2+'s K, and the ESS, are those of all samples), with a gradient through its own part only; the
sum of the gradients over the processes is that of the whole batch.
"""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from boltzgen.errors import BoltzgenError

__all__ = ["Processes", "SharingError", "is_torchrun", "start_processes"]


class SharingError(BoltzgenError, ValueError):
    """A training cannot be shared by so many processes."""


def start_processes(device: torch.device | str = "cpu") -> Processes:
    """Join the processes that ``torchrun`` started; the only one, if it was not ``torchrun`` that started this.

    Tensors on a CPU go through gloo, those on CUDA devices through NCCL. To be called before the generator is built, by
    programs of your own too; ``boltzgen run`` does.
    """
    if is_torchrun() and not dist.is_initialized():
        is_cuda = torch.device(device).type == "cuda"
        if is_cuda:
            torch.cuda.set_device(device)
        # Its functions have the group as a default argument: imported later (torch.compile does), it would keep the
        # group, and gloo's threads, beyond destroy_process_group, into an interpreter that is gone (SIGABRT at exit).
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
        atexit.register(leave_processes)  # its threads must not outlive the interpreter
    return Processes()


def leave_processes() -> None:
    """End the group, and its threads; nothing if there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


class Processes:
    """The processes that train together.

    Attributes
    ----------
    rank : int
        Number of this one; the first writes the files.
    size : int
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of all processes in the order of their ranks: those of the others without gradient."""
        if self.size == 1:
            return rows
        own = rows.detach().contiguous()
        as_bytes = own.to(torch.uint8) if own.dtype == torch.bool else own
        parts = [torch.empty_like(as_bytes) for _ in range(self.size)]
        dist.all_gather(parts, as_bytes)
        typed = [part.to(own.dtype) for part in parts]
        return torch.cat([rows if rank == self.rank else part for rank, part in enumerate(typed)])

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, value: int) -> int:
        """A count, over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(total)
        return int(total)

    def agree(self, decision: bool) -> bool:
        """The first process's decision."""
        if self.size == 1:
            return decision
        flag = torch.tensor([int(decision)], dtype=torch.int64)
        dist.broadcast(flag, 0)
        return bool(flag)

    def same_start(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)
