"""The partial set: queries of which only a part of the height is left, against whole gallery images.

As in the published experiment each query keeps a random 60-90 % of its height, at a random place, and is resized back.

::

    python -m train.data.partial --source data/market1501 --target data/market1501_partial
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from train.data.dataset import list_images, read_image
from train.data.files import fingerprint, has_stamp, new_folder, write_stamp
from train.data.market1501 import FOLDERS, GALLERY, PARTIAL_STAMP, QUERY, TRAIN, load_partial
from train.data.paths import find_input

FORMAT = 1
SHARED = (TRAIN, GALLERY)  # the folders that are the source's own


def make_partial_queries(
    source_root: str | Path,
    target_root: str | Path,
    *,
    seed: int = 0,
    min_ratio: float = 0.6,
    max_ratio: float = 0.9,
) -> Path:
    """Writes the partial set of a data set in Market-1501's layout, unless the same one is there.

    Training and gallery folders are relative links to those of the source, or copies where the file system has no
    links. The source is only read.

    Args:
        source_root: the whole data set: the folder that holds ``query/`` and the others.
        target_root: the folder to make, such as ``market1501_partial`` beside the source.
        seed: with a file's name, decides its crop.
        min_ratio: the least part of the height that is kept.
        max_ratio: the greatest.

    Returns:
        ``target_root``.

    Raises:
        FileNotFoundError: the source, or a part of it, is missing.
        FileExistsError: the target exists and was not made here.
        ValueError: the ratios are out of order, the target is the source, or there is no query.
    """
    if not 0 < min_ratio <= max_ratio <= 1:
        raise ValueError(f"min_ratio and max_ratio should be 0 < min <= max <= 1, got {min_ratio} and {max_ratio}")
    if seed < 0:
        raise ValueError(f"seed should be at least 0, got {seed}")
    source, target = find_input(source_root, "data set").resolve(), Path(target_root)
    for folder in FOLDERS:
        if not (source / folder).is_dir():
            raise FileNotFoundError(f"'{source}' lacks the folder {folder}/: it is no data set in Market-1501's layout")
    if target.resolve() == source or source in target.resolve().parents:
        raise ValueError(f"target_root should lie outside the source '{source}', got '{target}'")
    queries = list_images(source / QUERY)
    if not queries:
        raise ValueError(f"'{source / QUERY}' holds no image")
    stamp = {
        "format": FORMAT, "seed": seed, "min_ratio": min_ratio, "max_ratio": max_ratio, "queries": len(queries),
        "source_queries": fingerprint(source, [QUERY], contents=True), "shared": fingerprint(source, SHARED),
    }  # fmt: skip
    if has_stamp(target, PARTIAL_STAMP, stamp, [QUERY]) and fingerprint(target, SHARED) == stamp["shared"]:
        return target
    with new_folder(target, PARTIAL_STAMP) as work:
        (work / QUERY).mkdir()
        for path in tqdm(queries, desc="cutting queries", unit="image", disable=None):
            rng = np.random.default_rng([seed, *path.name.encode()])
            _cut(read_image(path), rng, min_ratio, max_ratio).save(work / QUERY / path.name, quality=95)
        for folder in SHARED:
            _share(source / folder, work / folder, target.parent.resolve() / target.name)
        write_stamp(work, PARTIAL_STAMP, stamp, [QUERY])
    return target


def _cut(image: Image.Image, rng: np.random.Generator, min_ratio: float, max_ratio: float) -> Image.Image:
    """Keeps a random part of the height and resizes it back."""
    kept = max(1, round(image.height * rng.uniform(min_ratio, max_ratio)))
    top = int(rng.integers(image.height - kept + 1))
    return image.crop((0, top, image.width, top + kept)).resize(image.size, Image.Resampling.BILINEAR)


def _share(folder: Path, link: Path, home: Path) -> None:
    """Makes ``link`` show ``folder``, by a link that holds once ``link`` lies in ``home``."""
    try:
        link.symlink_to(os.path.relpath(folder, home), target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(folder, link)


def main() -> None:
    """Writes a partial set from the command line."""
    parser = argparse.ArgumentParser(description="Write the partial query set of a data set in Market-1501's layout.")
    parser.add_argument("--source", required=True, help="the whole data set, such as data/market1501")
    parser.add_argument("--target", required=True, help="the folder to make, such as data/market1501_partial")
    parser.add_argument("--seed", type=int, default=0, help="decides the crops (default: 0)")
    parser.add_argument("--min-ratio", type=float, default=0.6, help="least part of the height kept (default: 0.6)")
    parser.add_argument("--max-ratio", type=float, default=0.9, help="greatest part of the height kept (default: 0.9)")
    options = parser.parse_args()
    try:
        path = make_partial_queries(options.source, options.target, seed=options.seed,
                                    min_ratio=options.min_ratio, max_ratio=options.max_ratio)  # fmt: skip
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(load_partial(path, name=path.name).summary())
    print(f"in {path}")


if __name__ == "__main__":
    main()
