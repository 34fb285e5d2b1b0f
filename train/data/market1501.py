"""Market-1501's layout (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015).

``bounding_box_train/``, ``query/`` and ``bounding_box_test/`` hold images called ``0001_c1s1_001051_00.jpg``: identity,
camera, sequence, frame, box. Identity -1 is junk (a box that shows no whole person), 0 is a distractor.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from train.data.counts import OFFICIAL
from train.data.dataset import ReIDDataset, Sample, list_images, relabel
from train.data.paths import data_set_places, find_input, squeeze

TRAIN, QUERY, GALLERY = FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
JUNK, DISTRACTOR = -1, 0
PARTIAL_STAMP = "partial.json"

_FAMILIES = ("market", "duke", "cuhk", "msmt")  # how the names of the data sets in this layout begin

_NAME = re.compile(r"(?P<identity>-1|\d+)_c(?P<camera>\d+)(?:s\d+)?[_.]", re.ASCII)


def load_market1501(root: str | Path, *, name: str = "market1501", folders: tuple[str, ...] = ()) -> ReIDDataset:
    """Reads a data set in Market-1501's layout.

    Junk images (identity -1) are left out of every subset, as in the published loader; distractors (0) stay in the
    gallery.

    Args:
        root: the data set's folder, the folder that holds it, or the one in it that the archive unpacks to.
        name: the name of the result, of its official counts, and of the folder looked for in ``root``.
        folders: other names that the folder may have.

    Returns:
        The data set; cameras are numbered as in the file names, from 1.

    Raises:
        FileNotFoundError: no such folder, or one of the three sub-folders is missing.
        ValueError: a sub-folder holds no image, an image's name does not follow the pattern, the folder is called after
            another data set, or it is that of a partial set.
    """
    home = find_market1501(root, name=name, folders=folders)
    if _is_partial(home):
        own = name if name in ("dukemtmcreid", "synthetic") else "market1501"
        raise ValueError(
            f"the folder for {name} should hold whole queries, got the partial set '{home}': give the folder of the "
            f"whole set, or read this one by -d {own}_partial"
        )
    return _read(home, name)


def load_partial(root: str | Path, *, name: str = "market1501_partial") -> ReIDDataset:
    """Reads a partial set: as ``load_market1501``, but never mistakes the whole set for the partial one."""
    home = find_market1501(root, name=name)
    if not _is_partial(home):
        raise FileNotFoundError(
            f"no {name} at '{home}': it holds whole queries; make it with "
            f"python -m train.data.partial --source {home} --target {home.with_name(name)}"
        )
    return _read(home, name)


def _is_partial(home: Path) -> bool:
    return "partial" in _own_name(home).lower() or (home / PARTIAL_STAMP).is_file()


def _own_name(home: Path) -> str:
    """What a folder is called, also where it was named ``.``."""
    return os.path.basename(os.path.abspath(home))


def _read(home: Path, name: str) -> ReIDDataset:
    train, query, gallery = (_read_folder(home / folder) for folder in FOLDERS)
    both = {sample.identity for sample in train} & {sample.identity for sample in query}
    if both:
        some = "1 query identity is" if len(both) == 1 else f"{len(both)} query identities are"
        warnings.warn(f"'{home}': {some} also in {TRAIN}", stacklevel=3)
    return ReIDDataset(name, relabel(train), query, gallery, OFFICIAL.get(name))


def find_market1501(root: str | Path, *, name: str = "market1501", folders: tuple[str, ...] = ()) -> Path:
    """The folder that holds the three sub-folders (see ``data_set_places``)."""
    root = find_input(root, f"folder for {name}")
    names = (name, *folders)
    for home in data_set_places(root, names):
        if any((home / folder).is_dir() for folder in FOLDERS):
            break
    else:
        make = "; python -m train.data.partial makes it from the whole set" if name.endswith("_partial") else ""
        raise FileNotFoundError(
            f"no {name} data set at '{root}': wanted {', '.join(FOLDERS)} there or in {' or '.join(names)}{make}"
        )
    for folder in FOLDERS:
        if not (home / folder).is_dir():
            wanted = f"wanted {', '.join(FOLDERS)}, as in the archive"
            raise FileNotFoundError(f"{name} at '{home}' lacks the folder {folder}/: {wanted}")
    if (other := _named_after_another(home, name)) is not None:
        raise ValueError(
            f"the folder for {name} should not be that of another data set, got '{home}', {other} by its name"
        )
    return home


def _named_after_another(home: Path, name: str) -> str | None:
    """The data set that a folder is called after, if it is another than the one looked for."""
    squeezed = squeeze(_own_name(home))
    for own, other in (("detected", "labeled"), ("labeled", "detected")):  # CUHK03 has two kinds of boxes
        if name.endswith(own) and other in squeezed and own not in squeezed:
            return other
    named = [family for family in _FAMILIES if family in squeezed]
    return named[0] if named and any(name.startswith(f) for f in _FAMILIES) and not name.startswith(named[0]) else None


def parse_name(name: str) -> tuple[int, int]:
    """Identity and camera from a file name.

    Example:
        >>> parse_name("0002_c1s1_000451_03.jpg")
        (2, 1)
        >>> parse_name("-1_c6s3_087542_01.jpg")
        (-1, 6)
    """
    match = _NAME.match(name)
    if match is None:
        raise ValueError(f"'{name}' is not a Market-1501 file name: wanted one like 0001_c1s1_001051_00.jpg")
    return int(match["identity"]), int(match["camera"])


def _read_folder(folder: Path) -> list[Sample]:
    paths = list_images(folder)
    if not paths:
        raise ValueError(f"'{folder}' holds no image: wanted files like 0001_c1s1_001051_00.jpg, as in the archive")
    samples = []
    for path in paths:
        try:
            samples.append(Sample(str(path), *parse_name(path.name)))
        except ValueError as error:
            raise ValueError(f"in '{folder}': {error}") from None
    return [sample for sample in samples if sample.identity != JUNK]
