"""NumPy arrays in, NumPy arrays out, for the operators that evaluation code calls."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


def numpy_in_numpy_out(op: Callable) -> Callable:
    """Lets an operator on tensors take NumPy arrays as well, and answer in kind: arrays, and plain numbers for scalars.

    float16 arrays are computed as float32 and come back as float32. Arrays and tensors in one call are a TypeError.
    """
    signature = inspect.signature(op)

    @functools.wraps(op)
    def either(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            return op(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
        for name, value in arguments.items():
            if isinstance(value, Tensor | list | tuple):
                wanted = f"a numpy.ndarray like {next(iter(arrays))}"
                raise TypeError(f"{name} should be {wanted}, got {type(value).__name__}")
        only_half = all(array.dtype == np.float16 for array in arrays.values() if array.dtype.kind == "f")
        tensors = {name: _to_tensor(name, array, only_half) for name, array in arrays.items()}
        return _to_numpy(op(**(arguments | tensors)))

    return either


def _to_tensor(name: str, array: np.ndarray, half_as_float32: bool) -> Tensor:
    if half_as_float32 and array.dtype == np.float16:
        array = array.astype(np.float32)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} should be a plain array, got a masked one: nothing here heeds the mask")
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)  # nothing here writes to it
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} should be an array of native numbers, got dtype {array.dtype}") from error


def _to_numpy(result: Any) -> Any:
    if isinstance(result, tuple):
        return type(result)(*map(_to_numpy, result))
    return result.numpy() if result.ndim else result.item()
