"""Reads checkpoint files, tensors and plain values only, and says in a line what is wrong with one that cannot be."""

import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Published checkpoints keep their rank-1 as a NumPy scalar beside the weights. These names are all that takes to
# read scalars; everything else that is not a tensor or a plain Python value stays refused.
_NUMPY_SCALAR = [
    (np.float32(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float32(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
]

# Where programs keep the state dict, and what they or torch put before every name in it.
_HOLDERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.")

# How files begin that are often taken for checkpoints.
_AGAIN = "copy or download it again"
_UNPACK = "it is a packed archive: unpack it, and give the file inside"
_BEGINNINGS = {
    b"version https://git-lfs": "it is a Git LFS pointer, which stands for the file: fetch that with `git lfs pull`",
    b"<": "it is a web page: follow the link in a browser, and download the file that the page leads to",
    b"\x1f\x8b": _UNPACK,
    b"BZh": _UNPACK,
    b"\xfd7zXZ": _UNPACK,
    b"7z\xbc\xaf": _UNPACK,
    b"Rar!": _UNPACK,
    b"(\xb5/\xfd": _UNPACK,
}


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint file to the CPU, tensors and plain values only (`weights_only=True`).

    Files of every torch since 0.4 are read, also those that Python 2 wrote. Today's format, a zip, has a checksum of
    every tensor, which is compared; the format of before torch 1.6 has none, so that damage may go unseen in it.

    Args:
        path: the file, as `torch.save` wrote it.

    Returns:
        The dict in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, damaged, something else than a checkpoint, holds objects that take
            code to read, or is not a dict.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path} is a folder: give a file")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        _compare_checksums(path)
        with torch.serialization.safe_globals(_NUMPY_SCALAR), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch does follow the encoding (of Python 2's strings), and denies it
            content = torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except PermissionError:
        raise
    except Exception as error:  # torch.load has no error of its own: damage shows as any of a dozen types
        reason = _reason(path, error)
        raise ValueError(f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {path} should hold a dict, got {type(content).__name__}")
    return dict(content)


def _compare_checksums(path: Path) -> None:
    """Hold the records of a zip against their checksums, which torch writes and does not read (zipfile.BadZipFile)."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4" or not zipfile.is_zipfile(path):
            return
    with zipfile.ZipFile(path) as archive:
        unwritten = not any(record.CRC for record in archive.infolist())  # torch.serialization.set_crc32_options(False)
        damaged = None if unwritten else archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"its record {damaged} does not have the checksum written with it")


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, and what to do about it."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return f"it is empty: {_AGAIN}"
    if not head.strip(b"\0"):
        return f"it is damaged, beginning with zeros alone as a download does that has not arrived: {_AGAIN}"
    for beginning, words in _BEGINNINGS.items():
        if head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(beginning):
            return words
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return f"it is cut short: {_AGAIN}"
        if isinstance(error, zipfile.BadZipFile):
            return f"it is damaged ({error}): {_AGAIN}"
        with zipfile.ZipFile(path) as archive:
            inside = {name.rpartition("/")[2] for name in archive.namelist()}
        if "data.pkl" not in inside:
            return _UNPACK
        if "constants.pkl" in inside:
            return _needs_code("a TorchScript program")
    elif tarfile.is_tarfile(path):
        return _UNPACK
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return (
            "it is a safetensors file: turn it into one of torch, "
            "torch.save(safetensors.torch.load_file(file), 'weights.pth')"
        )
    if isinstance(error, EOFError | IndexError) or "unexpected EOF" in str(error):
        return f"it is cut short: {_AGAIN}"
    unpickling = isinstance(error, pickle.UnpicklingError)
    if unpickling and head.startswith((b"PK", b"\x80")):
        named = re.search(r"GLOBAL (\S+)", str(error))
        return _needs_code(named[1] if named else "or is pickled in a way that torch.save does not by itself")
    said = "" if unpickling else f" ({(str(error).strip() or type(error).__name__).splitlines()[0][:80]})"
    return f"it is damaged, or no file of torch's{said}: {_AGAIN}"


def _needs_code(what: str) -> str:
    return (
        f"it holds Python objects ({what}), and reading those can run any code. Where it was written, save the "
        f"weights alone, torch.save(model.state_dict(), 'weights.pth'), and give that file"
    )


def find_state_dict(content: Mapping, path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict inside what `read_checkpoint` returned, without what wrappers put before all of its names.

    It is looked for under "state_dict", "model", "model_state_dict" and "net", and else is the whole. DataParallel
    puts "module." before the names, `torch.compile` "_orig_mod.".

    Args:
        content: the dict that was read.
        path: where it came from, for the message.

    Returns:
        Parameter and buffer names to tensors. DenseNet's old names, which torchvision's ImageNet weights still have
        (`denselayer1.norm.1`), are today's (`denselayer1.norm1`).

    Raises:
        ValueError: there is no state dict in it.
    """
    state_dict = next((content[key] for key in _HOLDERS if key in content), content)
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"checkpoint {path} holds no state dict, only {', '.join(map(str, content)) or 'nothing'}")
    sought = "" if state_dict is not content else f" (nothing is under {', '.join(_HOLDERS)})"
    odd = [repr(name) for name in state_dict if not isinstance(name, str)]
    if odd:
        raise ValueError(f"checkpoint {path} holds no state dict: not a name: {listed(odd)}{sought}")
    other = [str(name) for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"checkpoint {path} holds no state dict: not a tensor: {listed(other)}{sought}")
    plain = dict(state_dict)
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in plain)), ""):
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return {re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name): x for name, x in plain.items()}


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Names with commas between, the first ten of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
