"""Features of a query and a gallery set: from a model, and to and from .npz files."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from train import processes
from train.data import to_device
from train.files import written_whole


@dataclass
class Features:
    """Features of a query and a gallery set, with their identities and cameras.

    Attributes:
        query, gallery: (M, D) and (N, D) float32 global features.
        query_ids, gallery_ids: (M,) and (N,) int64 identities; -1 in the gallery marks junk.
        query_cameras, gallery_cameras: (M,) and (N,) int64 cameras.
        query_local, gallery_local: (M, stripes, d) and (N, stripes, d) float32 stripe features, or None.
    """

    query: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor
    query_cameras: Tensor
    gallery_cameras: Tensor
    query_local: Tensor | None = None
    gallery_local: Tensor | None = None

    def normalized(self) -> "Features":
        """The same with global features of unit length, as every published figure takes them."""
        unit = {name: functional.normalize(getattr(self, name), dim=1) for name in ("query", "gallery")}
        return Features(**{**vars(self), **unit})


def extract_features(
    model: nn.Module,
    query_loader: Iterable,
    gallery_loader: Iterable,
    device: torch.device,
) -> Features:
    """Run a model in evaluation mode over both sets, in float32.

    Args:
        model: maps images to (global_features (B, D), local_features (B, stripes, d)), or to global features alone.
        query_loader, gallery_loader: batches of (images, identities, cameras), at least one, the images as `to_device`
            takes them; where several processes work together, of this process's share of the images.
        device: where the model is.

    Returns:
        Features on the CPU, the global ones not normalised.
    """
    model.eval()
    parts, quiet = {}, processes.quiet()
    for name, loader in (("query", query_loader), ("gallery", gallery_loader)):
        batches = []
        for images, identities, cameras in tqdm(loader, desc=name, unit="batch", leave=False, disable=quiet):
            images = to_device(images, device)
            with torch.inference_mode():
                output = model(images)
            outputs = {name: output} if isinstance(output, Tensor) else {name: output[0], f"{name}_local": output[1]}
            found = {part: features.float().cpu() for part, features in outputs.items()}
            batches.append(found | {f"{name}_ids": identities, f"{name}_cameras": cameras})
        columns = {part: torch.cat([batch[part] for batch in batches]) for part in batches[0]}
        parts |= {part: processes.collect(column, device) for part, column in columns.items()}
    return Features(**parts)


class FlipAveraged(nn.Module):
    """A model whose test features are the mean over an image and its mirror image, as one row.

    Args:
        model: maps images (B, 3, height, width) to features (B, ...).

    Example:
        >>> FlipAveraged(nn.Flatten())(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[2., 2.]])
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, D)."""
        return (self.model(images) + self.model(images.flip(3))).flatten(1) / 2


def save_features(features: Features, path: str | os.PathLike) -> None:
    """Write features as the .npz that `load_features` reads, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for side in ("query", "gallery"):
        arrays[f"{side}_features"] = getattr(features, side).numpy()
        arrays[f"{side}_ids"] = getattr(features, f"{side}_ids").numpy()
        arrays[f"{side}_cameras"] = getattr(features, f"{side}_cameras").numpy()
        if getattr(features, f"{side}_local") is not None:
            arrays[f"{side}_local_features"] = getattr(features, f"{side}_local").numpy()
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_features(path: str | os.PathLike) -> Features:
    """Read features from an .npz file.

    Args:
        path: a file with query_features (M, D), gallery_features (N, D), query_ids and query_cameras (M,),
            gallery_ids and gallery_cameras (N,), and possibly query_local_features (M, stripes, d) and
            gallery_local_features (N, stripes, d).

    Returns:
        Features, as they stand in the file, in float32.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no .npz file, or one of these arrays is missing, damaged, of another shape or type, or holds
            what float32 and int64 cannot; the message names file and array.
    """
    arrays = _read_arrays(path)
    parts = {}
    for name, array in arrays.items():
        side, what = name.split("_", 1)
        rows = arrays[f"{side}_features"].shape[:1]
        dims = {"features": 2, "local_features": 3}.get(what, 1)
        if array.ndim != dims or array.shape[:1] != rows or array.size == 0:
            raise ValueError(
                f"{path}: {name} should have {dims} dimensions and as many rows as {side}_features, "
                f"and not be empty, got shape {array.shape} and {rows[0] if rows else 'no'} rows"
            )
        field = {"features": side, "local_features": f"{side}_local"}.get(what, name)
        try:
            parts[field] = _to_integers(array) if dims == 1 else _to_floats(array)
        except ValueError as error:
            raise ValueError(f"{path}: {name} {error}") from None
    for kind, first, second in (("features", "query", "gallery"), ("local_features", "query_local", "gallery_local")):
        if first in parts and parts[first].shape[1:] != parts[second].shape[1:]:
            raise ValueError(
                f"{path}: query_{kind} {tuple(parts[first].shape)} and gallery_{kind} {tuple(parts[second].shape)} "
                f"should agree in all but the number of rows"
            )
    return Features(**parts)


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file of features, whatever they hold; other arrays in the file are passed over."""
    needed = [f"{side}_{what}" for what in ("features", "ids", "cameras") for side in ("query", "gallery")]
    local = [f"{side}_local_features" for side in ("query", "gallery")]
    with open(path, "rb") as stream:
        name, arrays = None, {}
        try:  # NumPy's reader meets damaged bytes with errors of many kinds
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            wanted = needed + (local if set(local) & set(file.files) else [])
            missing = [one for one in wanted if one not in file.files]
            for name in wanted if not missing else ():
                arrays[name] = file[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise ValueError("it is no array")
        except Exception as error:
            what = f"{path} is not an .npz file" if name is None else f"{path}: {name} cannot be read"
            raise ValueError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}")
    return arrays


def _to_floats(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"should hold real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    odd = np.argwhere(~np.isfinite(floats))
    if len(odd):
        at = tuple(odd[0].tolist())
        raise ValueError(f"should hold finite float32 numbers, got {array[at]} at {at}")
    return torch.from_numpy(floats)


def _to_integers(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "iu":
        raise ValueError(f"should hold integers, got {array.dtype}")
    if int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"should hold integers of 64 bits with sign, got {array.max()}")
    return torch.from_numpy(array.astype(np.int64))
