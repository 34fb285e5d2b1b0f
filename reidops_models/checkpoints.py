"""Reading checkpoints: our own, the published ones, and torchvision's ImageNet weights."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Published checkpoints keep their rank-1 as a NumPy scalar beside the weights. These names are all that takes to
# read it; everything else that is not a tensor or a plain Python value stays refused.
_NUMPY_SCALAR = [
    (np.float32(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float32(0).__reduce__()[0],
    np.dtype,
    type(np.dtype("float32")),
    type(np.dtype("float64")),
]


def load_checkpoint(model: nn.Module, path: str | os.PathLike, *, skip: Sequence[str] = ()) -> nn.Module:
    """Load the weights in a file into a model, every tensor by its name and shape.

    The file holds a state dict, or a dict with one under "state_dict" (published) or "model" (our training script);
    a "module." before every name, as DataParallel writes it, is dropped. Only tensors and plain values are ever read
    (`weights_only=True`). The model is changed only when everything fits.

    Args:
        model: the model to fill; its tensors keep their device and dtype.
        path: the checkpoint file.
        skip: beginnings of names to leave as they are in the model, such as ("classifier.",) when the file was
            trained on other identities.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, or names or shapes do not match those of the model
            (all of them are listed).

    Example:
        >>> import os, tempfile, torch
        >>> from reidops_models import AlignedReID, load_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "model.pth")
        >>> torch.save({"state_dict": AlignedReID(5, "resnet18").state_dict()}, path)
        >>> model = load_checkpoint(AlignedReID(5, "resnet18"), path)
    """
    return fill(model, find_state_dict(read_checkpoint(path), path), path, skip)


def load_backbone(trunk: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Load torchvision ImageNet weights into a torchvision ResNet, leaving its classifier `fc` as it is."""
    return fill(trunk, find_state_dict(read_checkpoint(path), path), path, skip=("fc.",))


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint file to the CPU, tensors and plain values only.

    Args:
        path: the file, as `torch.save` wrote it.

    Returns:
        The dict in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, damaged, holds arbitrary objects, or is not a dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALAR):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: damage shows as any of a dozen types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: it is damaged, cut short, or not a file "
            f"of tensors ({reason})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {path} should hold a dict, got {type(content).__name__}")
    return dict(content)


def find_state_dict(content: Mapping, path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict inside what `read_checkpoint` returned, without any "module." before its names.

    Args:
        content: the dict that was read.
        path: where it came from, for the message.

    Returns:
        Parameter and buffer names to tensors.

    Raises:
        ValueError: there is no state dict in it.
    """
    state_dict = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"checkpoint {path} holds no state dict, only {', '.join(map(str, content)) or 'nothing'}")
    odd = [repr(name) for name in state_dict if not isinstance(name, str)]
    if odd:
        raise ValueError(f"checkpoint {path} holds no state dict: not a name: {_listed(odd)}")
    other = [str(name) for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"checkpoint {path} holds no state dict: not a tensor: {_listed(other)}")
    if all(name.startswith("module.") for name in state_dict):
        return {name.removeprefix("module."): value for name, value in state_dict.items()}
    return dict(state_dict)


def fill(
    model: nn.Module, state_dict: Mapping[str, Tensor], path: str | os.PathLike, skip: Sequence[str] = ()
) -> nn.Module:
    """Copy a state dict into a model, or refuse with the lists of names that do not match.

    Args:
        model: the model to fill, changed only when everything fits.
        state_dict: names to tensors.
        path: where they came from, for the message.
        skip: beginnings of names to leave as they are in the model.

    Returns:
        The same model.

    Raises:
        ValueError: names are missing or unexpected, shapes differ, or a number does not convert (complex to real,
            whole to floating).
    """
    given = {name: value for name, value in state_dict.items() if not name.startswith(tuple(skip))}
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(tuple(skip))}
    # Files from before torch 0.4.1 do not count batches; torch fills those counters in itself.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    misshaped = [
        f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    mistyped = [
        f"{name} {given[name].dtype} for {wanted[name].dtype}"
        for name in wanted
        if name in given
        and (given[name].is_complex() or (wanted[name].is_floating_point() and not given[name].is_floating_point()))
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped, "wrong dtype": mistyped}
    if any(problems.values()):
        lists = "; ".join(f"{problem}: {_listed(names)}" for problem, names in problems.items() if names)
        hint = _hint(given, wanted)
        raise ValueError(f"checkpoint {path} does not fit {type(model).__name__}: {lists}{hint and f' ({hint})'}")
    model.load_state_dict(given, strict=False)
    return model


def _hint(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What explains a mismatch in a word: another kind of model, or a classifier of other identities."""
    found, sought = _kind(given), _kind(wanted)
    if found and sought and found != sought:
        return f"the file looks like {found}, and the model is {sought}"
    differing = {
        (len(tensor), len(wanted[name]))
        for name, tensor in given.items()
        if "classifier" in name and name in wanted and tensor.ndim and tensor.shape != wanted[name].shape
    }
    if len(differing) == 1:
        theirs, ours = differing.pop()
        return f"the file was trained on {theirs} identities, and the model has {ours} classes"
    return ""


def _kind(names: Iterable[str]) -> str:
    """What model a state dict belongs to, from its names; empty if it is none that is known."""
    starts = {name.split(".")[0] for name in names}
    if "base" in starts:
        return "AlignedReID"
    if "layer4_1" in starts:
        return "MuDeep_v2"
    if {"layer4", "conv1"} <= starts:
        return "a torchvision ResNet"
    return ""


def _listed(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
