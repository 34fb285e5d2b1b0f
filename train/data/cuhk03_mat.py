"""cuhk-03.mat: from MATLAB's cells in an HDF5 file to PNG files.

``detected`` and ``labeled`` are 5 x 1 cells, one a pair of cameras; each holds a cell of people x 10, images 1-5 of the
first view and 6-10 of the second, some of them empty; each image is height x width x 3 bytes. ``testsets`` is a 20 x 1
cell of tables of 100 x 2: pair and person. HDF5 has every array transposed, for MATLAB counts columns first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from train.data.files import new_folder
from train.files import write_json

STAMP = "extracted.json"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading a file, and readers meet damage in many ways, into an OSError that names it."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"cannot read '{path}': its permissions do not let you (chmod u+r)") from error
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"cannot read '{path}', which is damaged, cut short or another file ({what})") from error


def extract_images(mat: Path, target: Path, boxes: str) -> None:
    """Writes all images of one kind of boxes as ``1_001_2_06.png``, pixel by pixel as they are, with the test sets.

    Args:
        mat: the file cuhk-03.mat.
        target: the folder to make; it appears when it is complete.
        boxes: "detected" or "labeled".

    Raises:
        OSError: the file cannot be read, h5py is not installed, or the images cannot be written.
    """
    test_sets, count = read_test_sets(mat), 0
    with new_folder(target, STAMP) as folder, _opened(mat) as file:
        with readable(mat):
            people = _people(file, boxes)
        for pair, person, cells in tqdm(people, desc=f"extracting {target.name}", unit="person", disable=None):
            with readable(mat):
                images = _images_of(file, pair, person, cells)
            for name, pixels in images.items():
                Image.fromarray(pixels).save(folder / name)
            count += len(images)
        write_json({"source": mat.name, "images": count, "test_sets": test_sets}, folder / STAMP)


def read_test_sets(mat: Path) -> list[list[list[int]]]:
    """The classic splits: for each of them the [pair, person] of its test people."""
    with _opened(mat) as file, readable(mat):
        return [file[cell][()].T.astype(int).tolist() for cell in file["testsets"][()].ravel()]


def _opened(mat: Path) -> Any:
    """The open file, a context manager."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise OSError(f"reading '{mat}' needs the package h5py: pip install h5py") from None
    with readable(mat):
        return h5py.File(mat, "r", locking=False)  # it is only read, perhaps where no file can be locked


def _people(file: Any, boxes: str) -> list[tuple[int, int, np.ndarray]]:
    """Pair, person and the references to the ten cells of everybody, numbered from 1."""
    pairs = [file[pair][()].T for pair in file[boxes][()].ravel()]
    return [(i, j, cells) for i, pair in enumerate(pairs, start=1) for j, cells in enumerate(pair, start=1)]


def _images_of(file: Any, pair: int, person: int, cells: np.ndarray) -> dict[str, np.ndarray]:
    """A person's images by their names; an empty cell holds its size, in one dimension, and not an image."""
    images = {}
    for index, cell in enumerate(cells, start=1):
        pixels = file[cell][()].T
        if pixels.ndim < 3 or pixels.size == 0:
            continue
        name = f"{pair}_{person:03d}_{1 if index <= 5 else 2}_{index:02d}.png"
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise ValueError(f"image {name} should be uint8 height x width x 3, got {pixels.dtype} {pixels.shape}")
        images[name] = np.ascontiguousarray(pixels)
    if not images:
        raise ValueError(f"person {pair}_{person:03d} has no image")
    return images
