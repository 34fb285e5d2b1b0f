"""What the operators with a gradient share in how they are registered with torch."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

AUTOCAST_DEVICES = ("cpu", "cuda")


def float32_under_autocast(op: str) -> None:
    """Under torch.autocast the operator computes in float32 and answers in float32, as torch's own distances do."""
    for device in AUTOCAST_DEVICES:
        torch.library.register_autocast(op, device, torch.float32)


def differentiable(op: torch._ops.OpOverload, setup_context: Callable, backward: Callable) -> Callable:
    """Registers the operator's gradient with torch, and gives the operator as a function that gets to it sooner.

    What torch.library makes for any operator goes through Python code four times in a training step, which takes
    longer than many a kernel. Where nothing asks for it (compilation, autocast, functorch, subclasses of Tensor), the
    function goes straight to the operator's kernel, by an autograd.Function of the same setup_context and backward.
    `plain` says that the caller has seen to that.
    """
    torch.library.register_autograd(op.name(), backward, setup_context=setup_context)

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def straight_backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph: the backward operator has to be seen, for it refuses
            return backward(ctx, *grads)
        with torch._C._AutoDispatchBelowAutograd():
            return backward(ctx, *grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(straight_backward)}
    straight = type(f"{op.__name__.partition('.')[0]}", (torch.autograd.Function,), members)

    def call(*inputs: Any, plain: bool | None = None) -> Any:
        if not (_is_plain(inputs) if plain is None else plain):
            return op(*inputs)
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return straight.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    return call


def _is_plain(inputs: tuple) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    device = inputs[0].device.type
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return False
    return all(type(value) in (Tensor, Parameter) or not isinstance(value, Tensor) for value in inputs)


def differentiable_once(backward_op: str) -> None:
    """Makes the derivative of a gradient an error, where torch would take it for a constant."""

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        name = backward_op.removeprefix("reidops::").removesuffix("_backward")
        raise NotImplementedError(f"reidops.{name} can be differentiated once, not twice")

    torch.library.register_autograd(backward_op, refuse)
