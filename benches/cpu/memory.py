"""Memory of a call, as the kernel counts the pages of this process."""

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """The call's result, and the most bytes that were resident during it beyond those before, the result's among them.

    None where the kernel does not count the peak of a call.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it counts when it is taken again
    try:
        RESET.write_text("5")
        before = resident("VmRSS")
    except OSError:
        return run(), None
    result = run()
    return result, max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", STATUS.read_text()).group(1))


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors and arrays of a result, as tensors."""
    if isinstance(result, torch.Tensor):
        return [result.detach()]
    if isinstance(result, np.ndarray):
        return [torch.from_numpy(result)]
    return [tensor for part in result for tensor in tensors(part)] if isinstance(result, tuple) else []


def beyond(peak: int | None, result: Any) -> int | None:
    """The peak less the result."""
    return None if peak is None else max(peak - sum(tensor.nbytes for tensor in tensors(result)), 0)
