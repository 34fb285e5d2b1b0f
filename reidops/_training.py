"""What the operators with a gradient share in how they are registered with torch."""

from typing import Any, NoReturn

import torch

AUTOCAST_DEVICES = ("cpu", "cuda")


def float32_under_autocast(op: str) -> None:
    """Under torch.autocast the operator computes in float32 and answers in float32, as torch's own distances do."""
    for device in AUTOCAST_DEVICES:
        torch.library.register_autocast(op, device, torch.float32)


def differentiable_once(backward_op: str) -> None:
    """Makes the derivative of a gradient an error, where torch would take it for a constant."""

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        name = backward_op.removeprefix("reidops::").removesuffix("_backward")
        raise NotImplementedError(f"reidops.{name} can be differentiated once, not twice")

    torch.library.register_autograd(backward_op, refuse)
