"""What comes in: the checks that all operators share, and the dtype they compute in.

Every check names the argument, what was wanted and what came. A wrong type or dtype is a TypeError, anything else a
ValueError. Checks of types, dtypes, devices and shapes cost nothing and are always made. Checks of values wait for the
device, so `checks_values` says when they are made; torch.compile skips them.
"""

import math
import operator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ._training import AUTOCAST_DEVICES

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32, torch.float64)
NOT_INTEGERS = (torch.bool, torch.complex32, torch.complex64, torch.complex128)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in FLOATS}
ORDINARY = (torch.float32, torch.float64, torch.int64)
PRECISIONS = ("highest", "high", "medium")


def is_ordinary(*tensors: Tensor) -> bool:
    """float32, float64 and int64 tensors on the CPU in plain eager mode: an operator may be tried at once.

    What the checks of types and shapes refuse, the operator refuses as well, so that they can wait for its error.
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    return all(type(t) in (Tensor, Parameter) and t.is_cpu and t.dtype in ORDINARY for t in tensors)


def check_floats(**tensors: Tensor) -> None:
    """Floating tensors, all of one dtype and device (under autocast, of one dtype once widened)."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} should be float16, bfloat16, float32 or float64, got {_word(tensor.dtype)}")
        if tensor.dtype != first.dtype and not (_autocast(first) and _widened(tensor) == _widened(first)):
            raise TypeError(f"{name} should be {_word(first.dtype)} like {first_name}, got {_word(tensor.dtype)}")
        _check_device(name, tensor, first_name, first)


def check_integers(like: dict[str, Tensor], **tensors: Tensor) -> None:
    """Integer tensors (labels, identities, cameras) on the device of the one tensor in `like`."""
    ((first_name, first),) = like.items()
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        if tensor.is_floating_point() or tensor.dtype in NOT_INTEGERS:
            raise TypeError(f"{name} should have an integer dtype, got {_word(tensor.dtype)}")
        _check_device(name, tensor, first_name, first)


def check_shape(name: str, tensor: Tensor, wanted: tuple[int | str, ...], like: str = "", empty: bool = False) -> None:
    """The wanted shape: a number has to be met, a letter is any size from 1 on.

    `like` ends the message's wish ("like query (3, 256)"). `empty` lets the first dimension, the samples, be 0.
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(wanted) and all(
        isinstance(size, str) or size == came for size, came in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} should have shape {_shape(wanted)}{like and ' ' + like}, got {_shape(shape)}")
    if any(came == 0 for came in (shape[1:] if empty else shape)):
        raise ValueError(f"{name} should not be empty: wanted shape {_shape(wanted)}, got {_shape(shape)}")


def check_between(name: str, value: int, low: int, high: int | None = None, why: str = "") -> int:
    """A whole number from low to high (None: no end), as a Python int. `why` explains the end in brackets."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} should be an integer, got {_type(value)} {value!r}") from None
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} should be {wanted}{why and f' ({why})'}, got {number}")
    return number


def check_number(name: str, value: float, low: float, high: float) -> float:
    """A finite number from low to high (infinity: no end), as a Python float."""
    try:
        number = float(None if isinstance(value, str) else value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} should be a number, got {_type(value)} {value!r}") from None
    if not (low <= number <= high and number < math.inf):
        wanted = f"at least {low} and finite" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} should be {wanted}, got {number}")
    return number


def check_flag(name: str, value: bool) -> None:
    """True or False itself, not something that could count as one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be True or False, got {_type(value)} {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_precision(precision: str | None) -> str:
    """torch's word for how float32 matrices are multiplied, torch's own setting where it is None."""
    if precision is None:
        return _default_precision()
    check_choice("precision", precision, PRECISIONS)
    return precision


def checks_values(tensor: Tensor, validate: bool | None = True) -> bool:
    """Whether to look at values: as `validate` says, and where it is None on the CPU only, where looking is cheap.

    There are no values to look at while torch.compile traces and in tensors without data.
    """
    if validate is not None:
        check_flag("validate", validate)
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return tensor.device.type == "cpu" if validate is None else validate


def check_finite(**tensors: Tensor) -> None:
    """Neither NaN nor infinity. Finite sums prove it in one pass; only if one is not, every value is looked at."""
    if not tensors:
        return
    sums = _numbers([tensor.detach().sum() for tensor in tensors.values()])
    for (name, tensor), total in zip(tensors.items(), sums, strict=True):
        if not math.isfinite(total):
            _refuse(name, tensor, ~tensor.isfinite(), "finite")


def check_features(**tensors: Tensor) -> None:
    """Finite, and small enough for their squared distances: |value| at most sqrt(largest / 4 d) of dimension d."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    if not tensors:
        return
    extremes = _numbers([extreme for tensor in tensors.values() for extreme in tensor.detach().aminmax()])
    for (name, tensor), low, high in zip(tensors.items(), extremes[::2], extremes[1::2], strict=True):
        limit = math.sqrt(LARGEST[tensor.dtype] / (4 * tensor.shape[-1]))
        if max(-low, high) <= limit:
            continue
        _refuse(name, tensor, ~tensor.isfinite(), "finite")
        wanted = f"within +-{limit:.3g}, so that squared distances fit {_word(tensor.dtype)}"
        raise ValueError(f"{name} should be {wanted}, got {high if high > limit else low}")


def check_no_nan(name: str, tensor: Tensor) -> None:
    """No NaN; infinities pass."""
    if not math.isfinite(tensor.sum()):
        _refuse(name, tensor, tensor.isnan(), "free of NaN")


def check_not_negative(**tensors: Tensor) -> None:
    """No value below 0, for finite tensors."""
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.amin() < 0:
            _refuse(name, tensor, tensor < 0, "0 or more everywhere")


def widen(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype the kernels compute in: half precision as float32, the others as they are."""
    return [tensor if tensor is None else tensor.to(_widened(tensor)) for tensor in tensors]


def result_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a training operator answers: its input's, or under autocast the one it computes in."""
    return _widened(tensor) if _autocast(tensor) else tensor.dtype


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor, got {_type(tensor)}")
    if tensor.layout != torch.strided or tensor.is_nested:
        came = "a nested tensor" if tensor.is_nested else f"layout {_word(tensor.layout)}"
        raise TypeError(f"{name} should be a dense tensor, got {came}")
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"reidops has no forward-mode derivatives, and {name} carries a tangent")


def _check_device(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(f"{name} should be on {first.device} like {first_name}, got {tensor.device}")


def _refuse(name: str, tensor: Tensor, is_bad: Tensor, wanted: str) -> None:
    places = is_bad.nonzero()
    if len(places):
        place = places[0].tolist()
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise ValueError(f"{name} should be {wanted}, got {tensor[tuple(place)].item()} at {place}{more}")


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Their values, with one wait for the device."""
    if scalars[0].device.type == "cpu":
        return [scalar.item() for scalar in scalars]
    return torch.stack(scalars).tolist()


def _autocast(tensor: Tensor) -> bool:
    device = tensor.device.type
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def _widened(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in HALF else tensor.dtype


def _word(name: object) -> str:
    return str(name).removeprefix("torch.")


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _default_precision() -> str:
    return torch.get_float32_matmul_precision()


# What torch.compiler.assume_constant_result does, without the second that importing torch.compile's machinery takes:
# the setting is a global that the tracer cannot follow, so compiled code keeps the one it was compiled under.
_default_precision._dynamo_marked_constant = True
