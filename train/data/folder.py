"""One's own images: a folder, sorted by sub-folders or by file names.

Subsets: ``train/`` with ``query/`` and ``gallery/``, or ``train/`` with ``test/``, each perhaps under ``images/``; a
folder without any of these is split by identity. In a subset, either each sub-folder is an identity, or file names tell
it: ``car_0002_cam1.jpg`` is identity ``car_0002``, camera 1. Other files, such as lists, are passed over.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.dataset import ReIDDataset, Sample, list_images
from train.data.paths import find_input

DEFAULT_PATTERN = r"(?P<identity>.+?)_(?:cam|c)(?P<camera>[0-9]+)(?![0-9])"
CAMERA_IN_NAME = r"(?:^|.*?_)(?:cam|c)(?P<camera>[0-9]+)(?![0-9])"
JUNK = "-1"  # Market-1501's word for a box that shows no whole person


class _Named(NamedTuple):
    path: Path
    identity: str
    camera: int | None


def load_folder(root: str | Path, *, pattern: str = DEFAULT_PATTERN, query_camera: int | None = None,
                train_fraction: float = 0.5, seed: int = 0) -> ReIDDataset:  # fmt: skip
    """Reads a folder of one's own images.

    Args:
        root: the folder.
        pattern: a regular expression matched at the start of each file name, with the named groups ``identity`` and
            (optional) ``camera``; without the latter no image has a camera. Where sub-folders name the identities only
            ``camera`` is read.
        query_camera: the camera whose test images are the queries, the others being the gallery; default: the lowest.
            Not used where ``query/`` and ``gallery/`` exist. Without cameras the first test image of each
            identity is its query.
        train_fraction: where nothing separates training from test, the part of the identities, drawn by ``seed``, that
            is for training; 0 keeps all for the test.
        seed: of that draw.

    Returns:
        The data set. Identity names are numbered in sorted order: 0..K-1 in training, from K onward in the test, so
        that equal names in both are different identities.

    Raises:
        FileNotFoundError: the folder does not exist, or only one of ``query/`` and ``gallery/`` does.
        ValueError: no image, images beside sub-folders of images, a name that does not match, a pattern without its
            groups, an unknown query camera.
    """
    if not 0 <= train_fraction < 1:
        raise ValueError(f"train_fraction should be at least 0 and below 1, got {train_fraction}")
    if seed < 0:
        raise ValueError(f"seed should be at least 0, got {seed}")
    home = find_input(root, "folder data set")
    if not home.is_dir():
        raise ValueError(f"root should be a folder, got the file '{home}'")
    pattern = _compile(pattern)
    base = _subset_home(home)
    if (base / "query").is_dir() or (base / "gallery").is_dir():
        for subset in ("query", "gallery"):
            if not (base / subset).is_dir():
                raise FileNotFoundError(f"'{base}' lacks the folder {subset}/ beside the other one")
        train = _read(base / "train", pattern) if (base / "train").is_dir() else []
        query, gallery = _read(base / "query", pattern), _read(base / "gallery", pattern)
        query, gallery = _default_cameras(query, 0), _default_cameras(gallery, 1)
    elif (base / "train").is_dir() or (base / "test").is_dir():
        train = _read(base / "train", pattern) if (base / "train").is_dir() else []
        test = _read(base / "test", pattern) if (base / "test").is_dir() else []
        query, gallery = _split_query(test, query_camera, base)
    else:
        train, test = _split_identities(_read(base, pattern), train_fraction, seed)
        query, gallery = _split_query(test, query_camera, base)
    return _number(train, query, gallery)


def _compile(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern should be a regular expression, got {pattern!r}: {error}") from None
    if not {"identity", "camera"} & set(compiled.groupindex):
        raise ValueError(f"pattern should have a group (?P<identity>...) or (?P<camera>...), got {pattern!r}")
    return compiled


def _subset_home(home: Path) -> Path:
    """The folder that holds the subsets, or else the images."""
    subsets = ("train", "test", "query", "gallery")
    if not any((home / subset).is_dir() for subset in subsets) and (home / "images").is_dir():
        return home / "images"
    return home


def _read(folder: Path, pattern: re.Pattern) -> list[_Named]:
    """The images of one subset, by sub-folder where there are any, else by file name."""
    by_folder = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    images, in_folders = list_images(folder), [(path, one.name) for one in by_folder for path in list_images(one)]
    if images and in_folders:
        raise ValueError(
            f"'{folder}' should hold images or sub-folders of images, not both, got '{images[0].name}' beside "
            f"'{in_folders[0][0].relative_to(folder)}'"
        )
    if images:
        found = [_parse(path, pattern) for path in images]
    else:
        camera = pattern if pattern.pattern != DEFAULT_PATTERN else re.compile(CAMERA_IN_NAME)
        found = [_in_folder(path, identity, camera) for path, identity in in_folders]
    if not found:
        raise ValueError(f"'{folder}' holds no image, neither itself nor in sub-folders")
    found = [image for image in found if image.identity != JUNK]
    with_camera = sum(image.camera is not None for image in found)
    if 0 < with_camera < len(found):
        odd = next(image.path for image in found if image.camera is None)
        raise ValueError(
            f"'{odd}' names no camera, but {with_camera} other images of '{folder}' do: rename it; or give "
            f"a --pattern without a camera group, such as '(?P<identity>.+?)_', and no image has a camera"
        )
    return found


def _parse(path: Path, pattern: re.Pattern) -> _Named:
    match = pattern.match(path.name)
    if match is None or "identity" not in pattern.groupindex or not match["identity"]:
        raise ValueError(
            f"'{path}' tells no identity: its name does not match the pattern {pattern.pattern!r}; give --pattern, or "
            f"sort the images into a folder for each identity"
        )
    return _Named(path, match["identity"], _camera_number(match, path))


def _in_folder(path: Path, identity: str, pattern: re.Pattern) -> _Named:
    match = pattern.match(path.name)
    return _Named(path, identity, _camera_number(match, path))


def _camera_number(match: re.Match | None, path: Path) -> int | None:
    text = match.groupdict().get("camera") if match else None
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"the camera of '{path}' should be a number, got {text!r}")
    return int(text)


def _default_cameras(images: list[_Named], camera: int) -> list[_Named]:
    return [image if image.camera is not None else image._replace(camera=camera) for image in images]


def _split_query(test: list[_Named], query_camera: int | None, base: Path) -> tuple[list[_Named], list[_Named]]:
    """The queries and the gallery of a test set: by camera, or one query an identity where no camera is known."""
    if not test:
        return [], []
    if test[0].camera is None:
        if query_camera is not None:
            raise ValueError(f"query_camera is {query_camera}, but no image of '{base}' names a camera")
        first = {image.identity: image.path for image in reversed(test)}
        query = [image._replace(camera=0) for image in test if image.path == first[image.identity]]
        gallery = [image._replace(camera=1) for image in test if image.path != first[image.identity]]
    else:
        cameras = sorted({image.camera for image in test})
        chosen = cameras[0] if query_camera is None else query_camera
        if chosen not in cameras:
            raise ValueError(f"query_camera should be one of {cameras}, the cameras of '{base}', got {query_camera}")
        query = [image for image in test if image.camera == chosen]
        gallery = [image for image in test if image.camera != chosen]
    if not gallery:
        raise ValueError(f"'{base}' leaves the gallery empty: every test image is a query")
    return query, gallery


def _split_identities(images: list[_Named], fraction: float, seed: int) -> tuple[list[_Named], list[_Named]]:
    names = sorted({image.identity for image in images})
    drawn = np.random.default_rng(seed).permutation(len(names))[: round(fraction * len(names))]
    chosen = {names[index] for index in drawn}
    train = [image for image in images if image.identity in chosen]
    return train, [image for image in images if image.identity not in chosen]


def _number(train: list[_Named], query: list[_Named], gallery: list[_Named]) -> ReIDDataset:
    train_names = sorted({image.identity for image in train})
    test_names = sorted({image.identity for image in query + gallery})
    labels = {name: label for label, name in enumerate(train_names)}
    numbers = {name: len(train_names) + index for index, name in enumerate(test_names)}
    alone = len({image.identity for image in query} - {image.identity for image in gallery})
    if alone:
        some = "1 query identity has" if alone == 1 else f"{alone} query identities have"
        warnings.warn(f"{some} no image in the gallery and cannot be found", stacklevel=3)
    return ReIDDataset(
        "folder",
        [Sample(str(image.path), labels[image.identity], image.camera or 0) for image in train],
        [Sample(str(image.path), numbers[image.identity], image.camera) for image in query],
        [Sample(str(image.path), numbers[image.identity], image.camera) for image in gallery],
    )
