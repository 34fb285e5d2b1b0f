"""Loads the compiled operators: reidops._C (schemas and CPU kernels), then reidops._C_cuda (CUDA kernels) where it can.

Both are built against LibTorch's stable ABI, so one build serves many versions of torch. Where it does not, the person
is told which torch the build wants, which torch is here, and what to type. A CUDA module that cannot be loaded is not
an error until a CUDA tensor comes.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def built_with(name: str, default: str | None = "unknown") -> str | None:
    """What setup.py wrote down when it built, in reidops/_build.py: TORCH_VERSION, TORCH_TARGET, CUDA_VERSION, ..."""
    try:
        return getattr(importlib.import_module("reidops._build"), name, default)
    except ModuleNotFoundError:
        return default


def load_cpu() -> ModuleType:
    """Imports reidops._C, which registers every operator's schema and CPU kernel; ImportError says what to type."""
    try:
        return importlib.import_module("reidops._C")
    except ModuleNotFoundError as error:
        if error.name != "reidops._C":
            raise
        folder = Path(__file__).parent
        others = sorted(path.name for path in folder.glob("_C.*"))
        found = f" (there is {', '.join(others)})" if others else ""
        raise ImportError(
            f"reidops is not built: {folder} holds no compiled reidops._C for this Python{found}.\n"
            f"{hidden_installation(folder)}In a checkout type: pip install -e . --no-build-isolation    or: make test"
        ) from None
    except ImportError as error:
        raise ImportError(
            f"reidops._C cannot be loaded: {error}\n"
            f"It was built with torch {built_with('TORCH_VERSION')} and wants torch {built_with('TORCH_TARGET')} or"
            f" newer; here is torch {torch.__version__}.\n"
            f"To build it again for the torch that is here, type in a checkout: {REBUILD}"
        ) from error


def hidden_installation(folder: Path) -> str:
    """A line on the installed reidops that a checkout's unbuilt folder hides, if there is one."""
    for place in map(Path, sys.path):
        installed = place.resolve() / "reidops"
        if installed != folder.resolve() and any(installed.glob("_C.*")):
            return f"It hides the installed one in {installed}: run from another directory, or build here.\n"
    return ""


def load_cuda() -> str:
    """Imports reidops._C_cuda, which registers the CUDA kernels; "loaded", or in one line the reason why not."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if importlib.util.find_spec("reidops._C_cuda") is None:
        return f"not built: {built_with('CUDA_OBSTACLE', None) or 'this reidops holds the CPU kernels only'}"
    try:
        importlib.import_module("reidops._C_cuda")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return (
            f"cannot be loaded: {reason} (built with CUDA {built_with('CUDA_VERSION')}, torch has CUDA"
            f" {torch.version.cuda}); to build it again, type in a checkout: {REBUILD}"
        )
    return "loaded"


C = load_cpu()
CUDA_EXTENSION = load_cuda()
CUDA_KERNELS = frozenset(
    name for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA") if name.startswith("reidops::")
)


def check_kernel(op: str, tensor: Tensor) -> None:
    """NotImplementedError, in words, where the operator has no kernel for the tensor's device."""
    device = tensor.device.type
    if device in ("cpu", "meta") or (device == "cuda" and f"reidops::{op}" in CUDA_KERNELS):
        return
    reason = f" (CUDA extension: {CUDA_EXTENSION})" if device == "cuda" else ""
    raise NotImplementedError(
        f"operator reidops::{op} has no kernel for {device} tensors{reason}; move its inputs with .cpu() and the result"
        f' back with .to("{device}")'
    )


def build_info(version: str) -> dict:
    """See reidops.build_info, which adds the package's version."""
    return {
        "version": version,
        "torch": built_with("TORCH_VERSION"),
        "torch_target": built_with("TORCH_TARGET"),
        "cuda": built_with("CUDA_VERSION", None),
        "cuda_archs": built_with("CUDA_ARCHS", None),
        **C.build_info(),
        "threads": torch.get_num_threads(),
        "cuda_extension": CUDA_EXTENSION,
    }
