"""How far a lower precision moves mAP: on a benchmark's own features and, where there are any, on a network's."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import reidops
from benches.rows import Figures

QUERIES = 2000  # that are scored
FILE = "market1501_features.npz"  # in the folder REIDOPS_DATA


def points(distance: Tensor, *people: Tensor) -> float:
    """mAP in points of a hundred."""
    return 100 * reidops.rank_metrics(distance, *people).mean_ap.item()


def kept(result: Tensor, exact: Tensor, query_ids: Tensor, gallery_ids: Tensor, alone: bool = False) -> Figures:
    """mAP of both distances; `alone`: the queries are the gallery, and an image does not count for itself."""
    people = [query_ids[: len(result)], gallery_ids]
    if alone:
        people += [torch.arange(len(result)), torch.arange(len(gallery_ids))]  # a camera for each
    found, best = points(result, *people), points(exact, *people)
    return {"map": found, "map_highest": best, "map_moved": abs(found - best)}


def dense(found: reidops.Neighbors, gallery: int, queries: int = QUERIES) -> Tensor:
    """Distances of the first queries to all of the gallery, infinite to what was not found."""
    distance, index = (tensor[:queries] for tensor in found)
    return torch.full((len(distance), gallery), torch.inf).scatter_(1, index, distance)


def real() -> dict[str, Tensor] | None:
    """A network's features of Market-1501, each of length 1, identities and cameras; None where there are none."""
    path = Path(os.environ.get("REIDOPS_DATA", "")) / FILE
    if not os.environ.get("REIDOPS_DATA") or not path.exists():
        return None
    with np.load(path) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    return {
        name: functional.normalize(tensor.float(), dim=1) if name.endswith("features") else tensor.long()
        for name, tensor in data.items()
    }


def on_real_features(k: int) -> Figures:
    """The same of the k nearest images in Market-1501."""
    data = real()
    if data is None:
        return {}
    query, gallery = data["query_features"], data["gallery_features"]
    found = [
        dense(reidops.knn(query, gallery, k, precision=precision), len(gallery)) for precision in ("medium", "highest")
    ]
    return moved(data, *found)


def on_real_stripes(stripes: int, queries: int = 400) -> Figures:
    """The same by DMLI, with the features cut into stripes."""
    data = real()
    if data is None:
        return {}
    query, gallery = (data[name].unflatten(1, (stripes, -1)) for name in ("query_features", "gallery_features"))
    found = [reidops.dmli_matrix(query[:queries], gallery, precision=precision) for precision in ("medium", "highest")]
    return moved(data, *found)


def moved(data: dict[str, Tensor], result: Tensor, exact: Tensor) -> Figures:
    count = len(result)
    people = data["query_ids"][:count], data["gallery_ids"], data["query_cameras"][:count], data["gallery_cameras"]
    return {"map_moved_real": abs(points(result, *people) - points(exact, *people))}
