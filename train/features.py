"""Features of a query and a gallery set: from a model, and to and from .npz files."""

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm


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
        model: maps images to (global_features (B, D), local_features (B, stripes, d)).
        query_loader, gallery_loader: batches of (images, identities, cameras).
        device: where the model is.

    Returns:
        Features on the CPU, the global ones not normalised.
    """
    model.eval()
    parts = {}
    for name, loader in (("query", query_loader), ("gallery", gallery_loader)):
        batches = []
        for images, identities, cameras in tqdm(loader, desc=name, unit="batch", leave=False, disable=None):
            with torch.inference_mode():
                features, stripes = model(images.to(device, non_blocking=True))
            batches.append((features.float().cpu(), stripes.float().cpu(), identities, cameras))
        columns = [torch.cat(column) for column in zip(*batches, strict=True)]
        parts |= dict(zip((name, f"{name}_local", f"{name}_ids", f"{name}_cameras"), columns, strict=True))
    return Features(**parts)


def save_features(features: Features, path: str | os.PathLike) -> None:
    """Write features as the .npz that `load_features` reads, under a temporary name first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for side in ("query", "gallery"):
        arrays[f"{side}_features"] = getattr(features, side).numpy()
        arrays[f"{side}_ids"] = getattr(features, f"{side}_ids").numpy()
        arrays[f"{side}_cameras"] = getattr(features, f"{side}_cameras").numpy()
        if getattr(features, f"{side}_local") is not None:
            arrays[f"{side}_local_features"] = getattr(features, f"{side}_local").numpy()
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def load_features(path: str | os.PathLike) -> Features:
    """Read features from an .npz file.

    Args:
        path: a file with query_features (M, D), gallery_features (N, D), query_ids and query_cameras (M,),
            gallery_ids and gallery_cameras (N,), and possibly query_local_features (M, stripes, d) and
            gallery_local_features (N, stripes, d).

    Returns:
        Features, as they stand in the file, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz file, an array is missing, or shapes disagree.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz file of plain arrays: {error}") from error
    needed = [f"{side}_{what}" for what in ("features", "ids", "cameras") for side in ("query", "gallery")]
    missing = [name for name in needed if name not in arrays]
    local = [f"{side}_local_features" for side in ("query", "gallery")]
    if any(name in arrays for name in local):
        missing += [name for name in local if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")

    parts = {}
    for side in ("query", "gallery"):
        count = len(arrays[f"{side}_features"])
        for what, dims, dtype in (
            ("features", 2, np.float32),
            ("ids", 1, np.int64),
            ("cameras", 1, np.int64),
            ("local_features", 3, np.float32),
        ):
            name = f"{side}_{what}"
            if name not in arrays:
                continue
            array = arrays[name]
            if array.ndim != dims or len(array) != count or count == 0:
                raise ValueError(
                    f"{path}: {name} should have {dims} dimensions and as many rows as {side}_features "
                    f"({count}, at least 1), got shape {array.shape}"
                )
            if dtype is np.int64 and not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{path}: {name} should hold integers, got {array.dtype}")
            field = {"features": side, "local_features": f"{side}_local"}.get(what, name)
            parts[field] = torch.from_numpy(array.astype(dtype))
    for kind, first, second in (("features", "query", "gallery"), ("local_features", "query_local", "gallery_local")):
        if first in parts and parts[first].shape[1:] != parts[second].shape[1:]:
            raise ValueError(
                f"{path}: query_{kind} {tuple(parts[first].shape)} and gallery_{kind} {tuple(parts[second].shape)} "
                f"should agree in all but the number of rows"
            )
    return Features(**parts)
