"""CUHK03 (Li et al., DeepReID, CVPR 2014): two views of 1,467 people, with a detector's boxes or boxes drawn by hand.

::

    cuhk03/cuhk03_release/cuhk-03.mat                       the images and the 20 classic splits, as published
    cuhk03/images_detected/, cuhk03/images_labeled/         the same as PNG; made from the .mat when first needed
    cuhk03/cuhk03_new_protocol_config_detected.mat          the new protocol (Zhong et al., CVPR 2017); ..._labeled.mat
    cuhk03/splits_new_detected.json, splits_classic_...     the splits as the published programs leave them
    cuhk03-np/detected/, cuhk03-np/labeled/                 the new protocol's images in Market-1501's layout

The .mat is not needed where the images are, nor a .json where a .mat says the same. An image is called
``1_001_2_06.png``: pair of cameras, person, view, image. Its identity is 1001, pair and person; its camera is the view.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from scipy.io import loadmat

from train.data.counts import OFFICIAL, Counts, SubsetCounts
from train.data.cuhk03_mat import STAMP, extract_images, read_test_sets, readable
from train.data.dataset import SUBSETS, ReIDDataset, Sample, list_images, relabel
from train.data.files import one_at_a_time, remove_left_overs
from train.data.market1501 import FOLDERS, load_market1501
from train.data.paths import data_set_places, find_input

CLASSIC_SPLITS = 20
ALL_IMAGES = {"detected": 14_097, "labeled": 14_096}
_NAME = re.compile(r"([1-9])_([0-9]{3})_([12])_[0-9]{2}\.png")


class _Split(NamedTuple):
    """File names of the images of each subset, and where that is written."""

    train: list[str]
    query: list[str]
    gallery: list[str]
    source: Path


def load_cuhk03(root: str | Path, *, cuhk03_labeled: bool = False, cuhk03_classic_split: bool = False,
                split_id: int = 0) -> ReIDDataset:  # fmt: skip
    """Reads CUHK03's lists; where only cuhk-03.mat is there, its images are written beside it first.

    Args:
        root: the folder ``cuhk03``, one of those in it, or the one that holds it or ``cuhk03-np``.
        cuhk03_labeled: the boxes drawn by hand, not the detector's.
        cuhk03_classic_split: one of the 20 splits into 1,367 people to train on and 100 to test on, whose test images
            are queries and gallery both; otherwise the new protocol: 767 and 700 people.
        split_id: which of the 20, from 0; the new protocol has one.

    Returns:
        The data set; its name is what one types after ``-d`` to get it.

    Raises:
        FileNotFoundError: the images, a file that tells the split, or images that it names are missing.
        OSError: a .mat or .json is damaged or cut short, h5py is not installed, or the images cannot be written.
        ValueError: there is no such split, or a file name does not follow the pattern.
    """
    if cuhk03_classic_split and not 0 <= split_id < CLASSIC_SPLITS:
        raise ValueError(f"split_id should be 0 to {CLASSIC_SPLITS - 1}, one of the classic splits, got {split_id}")
    if not cuhk03_classic_split and split_id != 0:
        raise ValueError(
            f"split_id should be 0 in the new protocol, which has one split, got {split_id}: "
            f"--cuhk03-classic-split has {CLASSIC_SPLITS}"
        )
    boxes = "labeled" if cuhk03_labeled else "detected"
    name = "cuhk03" + (" --cuhk03-labeled" if cuhk03_labeled else "")
    name += f" --cuhk03-classic-split --split-id {split_id}" if cuhk03_classic_split else ""

    root = find_input(root, "folder for cuhk03")
    home = _find_home(root, boxes)
    if home is None:
        if cuhk03_classic_split:
            raise FileNotFoundError(f"no cuhk03 in '{root}': {_wanted(boxes)}; the classic splits need one of them")
        return replace(_load_market1501_layout(root, boxes), name=name, official=OFFICIAL[name])
    folder = _images(home, boxes)
    present = [path.name for path in list_images(folder)]
    if cuhk03_classic_split:
        split = _classic_split(home, folder, boxes, split_id, present)
    else:
        split = _new_protocol(home, boxes)
    _require_images(split, folder, present)
    train, query, gallery = ([_sample(folder, one) for one in names] for names in split[:3])
    official = _classic_counts(boxes, len(query)) if cuhk03_classic_split else OFFICIAL[name]
    return ReIDDataset(name, relabel(train), query, gallery, official)


def _classic_counts(boxes: str, tested: int) -> SubsetCounts:
    """The counts of a classic split that has so many test images: it differs, and what is left is for the training."""
    test = Counts(100, tested)
    return {"train": Counts(1_367, ALL_IMAGES[boxes] - tested), "query": test, "gallery": test}


def _find_home(root: Path, boxes: str) -> Path | None:
    """The folder with the images of these boxes, or with the file to make them from."""
    own = Path(os.path.abspath(root))  # what the folder is called, also where it was named "."
    inner = own.name in ("cuhk03_release", "images_detected", "images_labeled")
    for home in [own.parent] if inner else data_set_places(root, ("cuhk03", "CUHK03")):
        if _has_images(home / f"images_{boxes}") or _find_mat(home) is not None:
            return home
    return None


def _find_mat(home: Path) -> Path | None:
    return _first_file(home / "cuhk03_release" / "cuhk-03.mat", home / "cuhk-03.mat")


def _first_file(*places: Path) -> Path | None:
    return next((place for place in places if place.is_file()), None)


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(entry.suffix == ".png" for entry in folder.iterdir())


def _wanted(boxes: str) -> str:
    return f"it should hold cuhk03/cuhk03_release/cuhk-03.mat or cuhk03/images_{boxes}/"


def _load_market1501_layout(root: Path, boxes: str) -> ReIDDataset:
    """The new protocol from ``cuhk03-np/``."""
    names = ("cuhk03-np", "CUHK03-NP", "cuhk03np")
    for home in (*(place / boxes for place in data_set_places(root, names)), root):
        if any((home / folder).is_dir() for folder in FOLDERS):
            return load_market1501(home, name=f"cuhk03np_{boxes}")
    raise FileNotFoundError(f"no cuhk03 in '{root}': {_wanted(boxes)} or cuhk03-np/{boxes}/")


def _images(home: Path, boxes: str) -> Path:
    """The folder of images, made if it is not there; of several processes one makes it, and the others wait."""
    folder = home / f"images_{boxes}"
    if not _has_images(folder):
        if not os.access(home, os.W_OK):
            raise PermissionError(
                f"'{home}' cannot be written to, and the images of cuhk-03.mat have to be extracted there, into "
                f"{folder.name}/: make it writable, or put a copy where you can write"
            )
        with one_at_a_time(home / f".images_{boxes}.lock"):
            if not _has_images(folder):
                remove_left_overs(folder)
                extract_images(_find_mat(home), folder, boxes)
    return folder


def _new_protocol(home: Path, boxes: str) -> _Split:
    """The new protocol, from its .mat, else from what a published program has made of that."""
    config, left = f"cuhk03_new_protocol_config_{boxes}.mat", f"splits_new_{boxes}.json"
    if (path := _first_file(home / config, home / "cuhk03_release" / config)) is not None:
        with readable(path):
            content = loadmat(path, variable_names=("filelist", "train_idx", "query_idx", "gallery_idx"))
            names = [str(name.item()) for name in content["filelist"].ravel()]
            columns = [content[f"{subset}_idx"].ravel().astype(int).tolist() for subset in SUBSETS]
            if not all(1 <= index <= len(names) for column in columns for index in column):
                raise ValueError(f"it has indices outside of its list of {len(names)} files")
            return _Split(*([names[index - 1] for index in column] for column in columns), path)
    if (path := _first_file(home / left)) is not None:
        return _published_splits(path)[0]
    raise FileNotFoundError(
        f"'{home}' lacks {config}, which tells the new protocol (it comes with the code of Zhong et al., Re-ranking "
        f"Person Re-identification with k-reciprocal Encoding); --cuhk03-classic-split goes without"
    )


def _classic_split(home: Path, folder: Path, boxes: str, split_id: int, present: Iterable[str]) -> _Split:
    """A classic split, from what was noted with the images, from what a published program left, or from the .mat."""
    left = home / f"splits_classic_{boxes}.json"
    if (source := _first_file(folder / STAMP)) is not None:
        with readable(source):
            test_sets = json.loads(source.read_text(encoding="utf-8"))["test_sets"]
            people = {(pair, person) for pair, person in test_sets[split_id]}
    elif (source := _first_file(left)) is not None:
        splits = _published_splits(source)
        if split_id >= len(splits):
            raise ValueError(f"split_id should be below {len(splits)}, the splits in '{source}', got {split_id}")
        people = {_parse(name, source)[:2] for name in splits[split_id].query}
    elif (source := _find_mat(home)) is not None:
        test_sets = read_test_sets(source)
        with readable(source):
            people = {(pair, person) for pair, person in test_sets[split_id]}
    else:
        raise FileNotFoundError(
            f"'{home}' lacks cuhk03_release/cuhk-03.mat and {left.name}, which tell the classic splits"
        )
    test, train, found = [], [], set()
    for name in present:
        pair, person, _ = _parse(name, folder)
        found.add((pair, person))
        (test if (pair, person) in people else train).append(name)
    if people - found:
        raise FileNotFoundError(
            f"'{folder}' has no image of {len(people - found)} of the {len(people)} test people of split {split_id} in "
            f"'{source}', such as {'{}_{:03d}'.format(*min(people - found))}: {_again(folder, source)}"
        )
    return _Split(train, test, test, source)


def _published_splits(path: Path) -> list[_Split]:
    """The splits of a .json: lists of [path of an image, identity, camera]; only the names of the files count."""
    with readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list) or not content:
            raise ValueError("it should hold a list of splits")
        return [
            _Split(*([re.split(r"[\\/]", one[0])[-1] for one in split[subset]] for subset in SUBSETS), path)
            for split in content
        ]


def _require_images(split: _Split, folder: Path, present: Iterable[str]) -> None:
    """Refuses a folder that lacks images of the split, as an extraction leaves it that was stopped."""
    named = {name for names in split[:3] for name in names}
    missing = named.difference(present)
    if missing:
        raise FileNotFoundError(
            f"'{folder}' lacks {len(missing):,} of the {len(named):,} images that '{split.source}' names, such as "
            f"{min(missing)}: {_again(folder, split.source)}"
        )
    for subset in SUBSETS:
        if not getattr(split, subset):
            raise ValueError(f"'{split.source}' names no {subset} image")


def _again(folder: Path, source: Path) -> str:
    """What to do about images that are not there."""
    if _find_mat(folder.parent) is not None:
        return f"delete {folder.name}/, and it is made again from cuhk-03.mat"
    return f"restore the missing files, or check that {source.name} is that of these boxes"


def _sample(folder: Path, name: str) -> Sample:
    pair, person, view = _parse(name, folder)
    return Sample(str(folder / name), 1000 * pair + person, view)


def _parse(name: str, source: Path) -> tuple[int, int, int]:
    """Pair of cameras, person and view from a file name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"in '{source}': '{name}' is not a CUHK03 file name: wanted one like 1_001_1_01.png")
    return int(match[1]), int(match[2]), int(match[3])
