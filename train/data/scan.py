"""Goes through many images once, in as many processes as a loader has, such as to find those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from train.data.dataset import BadImage, read_image

BATCH = 16


def find_bad(
    paths: Sequence[str], workers: int = 0, *, what: str = "images", skip: bool = True, quiet: bool = False
) -> dict[str, str]:
    """Decodes all images and says which cannot be read.

    Args:
        paths: image files.
        workers: processes that decode; 0 decodes in this one.
        what: the images are, for the progress bar.
        skip: go on past images that cannot be read.
        quiet: no progress bar.

    Returns:
        The reason for each image that cannot be read, by its path.

    Raises:
        BadImage: the first image that cannot be read, without ``skip``.
    """
    bad: dict[str, str] = {}
    for path, reason in zip(paths, each(_Reasons(paths), workers, what, quiet), strict=True):
        if reason and not skip:
            raise BadImage(reason)
        if reason:
            bad[path] = reason
    return bad


def each(dataset: Dataset, workers: int, what: str, quiet: bool = False) -> Iterator[Any]:
    """Every item of a data set in its order, with a progress bar; torch's random numbers are left as they are."""
    own = torch.Generator()  # a loader draws its processes' seed from somewhere
    loader = DataLoader(dataset, BATCH, num_workers=workers, collate_fn=list, generator=own)
    with tqdm(total=len(dataset), desc=what, unit="image", leave=False, disable=True if quiet else None) as bar:
        for batch in loader:
            for item in batch:
                bar.update()
                yield item


class _Reasons(Dataset):
    """For each image the reason why it cannot be read; empty if it can."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        try:
            read_image(self.paths[index])
        except BadImage as error:
            return str(error)
        return ""
