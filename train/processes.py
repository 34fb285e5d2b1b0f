"""Several processes that train one model, one a GPU, as torchrun starts them; and the same words for one alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

# Evaluation runs in the first process while the others wait for it.
PATIENCE = timedelta(hours=2)


@contextmanager
def started(use_cpu: bool = False) -> Iterator[torch.device | None]:
    """Join the other processes if torchrun started this one, and leave them at the end of the block.

    Args:
        use_cpu: work on the CPU even where there are GPUs.

    Yields:
        The device of this process; None where it is alone and may choose.

    Raises:
        ValueError: torchrun started more processes on this machine than it has GPUs.
    """
    if "LOCAL_RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield None
        return
    local, device = int(os.environ["LOCAL_RANK"]), torch.device("cpu")
    if not use_cpu and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc-per-node should be at most the number of GPUs, {torch.cuda.device_count()}, got process "
                f"number {local + 1}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def together() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """The number of this process, from 0; the first one prints, evaluates and writes."""
    return distributed.get_rank() if together() else 0


def quiet() -> bool | None:
    """What a progress bar is to be told: hidden in all processes but the first, and there where no one looks."""
    return True if rank() > 0 else None


def wait() -> None:
    """Wait for all processes to come here."""
    if together():
        distributed.barrier()


def share_buffers(model: torch.nn.Module) -> None:
    """Give all processes the first one's buffers: running statistics, which each has gathered on its own images."""
    if together():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, one process after the other, with gradients back to those they came from.

    Args:
        rows: (B, ...), the same shape in every process.

    Returns:
        (processes x B, ...); `rows` itself where there is one process. The gradients of what every process computes
        from it add up: where each computes the same loss, averaging gradients over processes gives that loss's own.
    """
    if not together():
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """`gather`, whose gradient is this process's part of the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(count())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(count())[rank()]


def share(items: Sequence) -> list:
    """This process's share of a list: every so-manieth item."""
    return list(items[rank() :: count()])


def collect(rows: Tensor, device: torch.device) -> Tensor:
    """The rows that all processes made of their `share`, in the order of the whole list, in every process.

    Args:
        rows: (B, ...) on the CPU; B may differ by one between processes.
        device: what the processes talk through.

    Returns:
        (sum of B, ...) on the CPU.
    """
    if not together():
        return rows
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count())]
    distributed.all_gather(lengths, torch.tensor([len(rows)], device=device))
    lengths = [int(length) for length in lengths]
    mine = rows.new_zeros(max(lengths), *rows.shape[1:], device=device)
    mine[: len(rows)] = rows.to(device)
    parts = [torch.empty_like(mine) for _ in lengths]
    distributed.all_gather(parts, mine)
    whole = rows.new_empty(sum(lengths), *rows.shape[1:])
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        whole[number :: count()] = part[:length].cpu()
    return whole


def merge(found: dict) -> dict:
    """What all processes found, in every process."""
    if not together():
        return found
    parts: list[dict] = [{}] * count()
    distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def add_up(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Each number's sum over all processes."""
    if not together():
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.tolist()
