"""MSMT17 (Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018).

``list_train.txt``, ``list_val.txt``, ``list_query.txt`` and ``list_gallery.txt`` hold lines such as
``0000/0000_008_01_0303morning_0019_2.jpg 0``: an image in the folder of training or of test images, and its identity.
The third number of the image's name is the camera. Training and test count their identities separately, from 0.

::

    msmt17/MSMT17_V1/{train,test,list_*.txt}
    msmt17/MSMT17_V2/{mask_train_v2,mask_test_v2,list_*.txt}     # the same images with blurred faces
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from train.data.counts import OFFICIAL
from train.data.dataset import ReIDDataset, Sample, relabel
from train.data.paths import data_set_places, find_input

NAMES = ("msmt17", "MSMT17", "MSMT17_V1", "MSMT17_V2")
LAYOUTS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
TRAIN, VALIDATION, QUERY, GALLERY = LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")

_LINE = re.compile(r"(?P<image>(?:.*/)?\d+_\d+_(?P<camera>\d+)_[^/]*)\s+(?P<identity>\d+)", re.ASCII)


def load_msmt17(root: str | Path, *, without_validation: bool = False) -> ReIDDataset:
    """Reads MSMT17 in the layout of V1 or V2; where one folder holds both, V1.

    Args:
        root: the data set's folder, the folder that holds it, or the version's folder in it.
        without_validation: leave out the validation list, which holds other images of the training's people. The
            paper's 32,621 training images are both; the programs of AlignedReID and torchreid train on 30,248.

    Returns:
        The data set; cameras are numbered as in the file names, from 1.

    Raises:
        FileNotFoundError: no such folder, or a list, a folder of images or an image that a list names is missing.
        ValueError: a list is empty, or a line of it is not as above.
    """
    home, train_images, test_images = _find(
        root, [name for name in LISTS if name != VALIDATION or not without_validation]
    )
    train = _read_list(home / TRAIN, train_images)
    if not without_validation:
        train += _read_list(home / VALIDATION, train_images)
    query, gallery = (_read_list(home / name, test_images) for name in (QUERY, GALLERY))
    official = OFFICIAL["msmt17 --without-validation" if without_validation else "msmt17"]
    return ReIDDataset("msmt17", relabel(train), query, gallery, official)


def _find(root: str | Path, lists: Sequence[str]) -> tuple[Path, Path, Path]:
    """The folder of the lists, that of the training images and that of the test images."""
    root = find_input(root, "folder for msmt17")
    wanted = "list_*.txt beside train/ and test/ (V1) or beside mask_train_v2/ and mask_test_v2/ (V2)"
    for home in data_set_places(root, NAMES):
        folders = next((pair for pair in LAYOUTS if any((home / folder).is_dir() for folder in pair)), None)
        if folders is not None or any((home / name).is_file() for name in lists):
            break
    else:
        raise FileNotFoundError(f"no msmt17 data set at '{root}': wanted {wanted}, there or in {' or '.join(NAMES)}")
    train, test = folders or LAYOUTS[0]
    missing = [f"{folder}/" for folder in (train, test) if not (home / folder).is_dir()]
    missing += [name for name in lists if not (home / name).is_file()]
    if missing:
        raise FileNotFoundError(f"msmt17 at '{home}' lacks {', '.join(missing)}: wanted {wanted}, as in the archive")
    return home, home / train, home / test


def _read_list(path: Path, images: Path) -> list[Sample]:
    """The samples of a list, whose images lie under ``images``."""
    samples, missing = [], []
    present: dict[str, set[str]] = {}  # one look into each of the 4,101 folders, rather than one for every image
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            wanted = "0000/0000_008_01_0303morning_0019_2.jpg 0"
            raise ValueError(f"line {number} of '{path}' should be an image and its identity, {wanted}, got {line!r}")
        folder, _, name = match["image"].rpartition("/")
        if folder not in present:
            present[folder] = _names_in(images / folder)
        if name not in present[folder]:
            missing.append(match["image"])
        samples.append(Sample(os.path.join(images, match["image"]), int(match["identity"]), int(match["camera"])))
    if missing:
        raise FileNotFoundError(
            f"'{path}' names {len(missing):,} {'image that is' if len(missing) == 1 else 'images that are'} not in "
            f"'{images}', the first is {missing[0]}: unpack the archive again"
        )
    if not samples:
        raise ValueError(f"'{path}' names no image: take it from the data set's archive")
    return samples


def _names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
