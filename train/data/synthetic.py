"""A synthetic pedestrian data set in Market-1501's layout: small enough for a laptop, with the field's difficulties.

People (``looks``, ``pedestrian``) walk past cameras (``scene``) that differ in colour, light, blur, background and
viewpoint; boxes are cut high, low or too loose, and things stand in the way. Four identities at a time share the
colours of their clothes. Everything follows from one seed.

::

    python -m train.data.synthetic --root data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from train.data.files import has_stamp, new_folder, write_stamp
from train.data.looks import Look, draw_look
from train.data.market1501 import DISTRACTOR, FOLDERS, GALLERY, JUNK, QUERY, TRAIN, load_market1501
from train.data.scene import Box, Camera, draw_box, draw_camera, photograph

FORMAT = 1  # raised whenever the same parameters would give other pictures
STAMP = "synthetic.json"
QUALITY = 90
STRANGERS = 100_000  # people with higher numbers are nobody's identity: passers-by and distractors


@dataclass(frozen=True)
class _Picture:
    """One file to be written. ``identity`` is what the name says, ``person`` who is drawn."""

    folder: str
    identity: int
    person: int
    camera: int
    shot: int

    @property
    def name(self) -> str:
        identity = str(JUNK) if self.identity == JUNK else f"{self.identity:04d}"
        return f"{identity}_c{self.camera}s1_{151 + 25 * self.shot:06d}_00.jpg"


def write_synthetic(
    root: str | Path,
    *,
    train_identities: int = 150,
    test_identities: int = 100,
    images_per_camera: int = 2,
    cameras: int = 6,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """Writes the synthetic data set to ``root``/synthetic, unless the same one is there.

    Each identity is seen ``images_per_camera`` times by every camera. Of the test identities the first picture from
    each camera is a query, the others are the gallery, together with one distractor (identity 0) and half a junk box
    (-1) a test identity.

    Args:
        root: the folder to write into.
        train_identities: how many people to train on, numbered from 1.
        test_identities: how many other people to be found, numbered after those.
        images_per_camera: at least 2, since one is the query.
        cameras: at least 2.
        height: of each picture, in pixels.
        width: of each picture, in pixels.
        seed: decides everything.

    Returns:
        The data set's folder, ready for ``load_dataset("synthetic", ...)``.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: ``root``/synthetic exists and was not made here.
    """
    parameters = {
        "train_identities": train_identities, "test_identities": test_identities,
        "images_per_camera": images_per_camera, "cameras": cameras, "height": height, "width": width, "seed": seed,
    }  # fmt: skip
    least = {"images_per_camera": 2, "cameras": 2, "height": 16, "width": 8, "seed": 0}
    for name, value in parameters.items():
        if not isinstance(value, int) or value < least.get(name, 1):
            raise ValueError(f"{name} should be a whole number of at least {least.get(name, 1)}, got {value!r}")
    if train_identities + test_identities > 9999:
        total = train_identities + test_identities
        raise ValueError(f"train_identities + test_identities should be at most 9999, got {total}")
    target = Path(root) / "synthetic"
    stamp = {"format": FORMAT, **parameters}
    if has_stamp(target, STAMP, stamp, FOLDERS):
        return target
    pictures = list(_plan(train_identities, test_identities, images_per_camera, cameras))
    views = [draw_camera(seed, number) for number in range(1, cameras + 1)]
    passers_by = tuple(draw_look(seed, STRANGERS + 50_000 + index) for index in range(24))
    with new_folder(target, STAMP) as folder:
        for name in FOLDERS:
            (folder / name).mkdir()
        for picture in tqdm(pictures, desc="drawing people", unit="image", disable=None):
            image = _take(picture, views[picture.camera - 1], passers_by, height, width)
            image.save(folder / picture.folder / picture.name, quality=QUALITY)
        write_stamp(folder, STAMP, stamp, FOLDERS)
    return target


def _plan(train_identities: int, test_identities: int, images_per_camera: int, cameras: int) -> Iterator[_Picture]:
    """Every file of the data set, in a fixed order."""
    for identity in range(1, train_identities + test_identities + 1):
        testing = identity > train_identities
        for camera in range(1, cameras + 1):
            for shot in range(images_per_camera):
                folder = TRAIN if not testing else QUERY if shot == 0 else GALLERY
                yield _Picture(folder, identity, identity, camera, (camera - 1) * images_per_camera + shot)
    for index in range(test_identities):
        yield _Picture(GALLERY, DISTRACTOR, STRANGERS + index, 1 + index % cameras, index)
    for index in range(test_identities // 2):
        yield _Picture(GALLERY, JUNK, STRANGERS + test_identities + index, 1 + index % cameras, index)


def _take(picture: _Picture, camera: Camera, passers_by: tuple[Look, ...], height: int, width: int) -> Image.Image:
    rng = np.random.default_rng([camera.seed, 5, picture.person, picture.camera, picture.shot])
    look, box = draw_look(camera.seed, picture.person), draw_box(rng)
    if picture.identity == JUNK:  # a box that missed: nobody, or a body's edge
        look = None if rng.random() < 0.3 else look
        side = -1 if rng.random() < 0.5 else 1
        box = Box("missed", float(rng.uniform(1.2, 2.0)), float(rng.uniform(1.0, 1.9)), 0.5 + 0.6 * side)
    return photograph(look, camera, rng, height, width, box=box, passers_by=passers_by)


def main() -> None:
    """Writes a data set from the command line."""
    parser = argparse.ArgumentParser(description="Write the synthetic pedestrian data set, in Market-1501's layout.")
    parser.add_argument("--root", default="data", help="folder to write synthetic/ into (default: data)")
    parser.add_argument("--train-identities", type=int, default=150, help="people to train on (default: 150)")
    parser.add_argument("--test-identities", type=int, default=100, help="people to be found (default: 100)")
    parser.add_argument("--images-per-camera", type=int, default=2, help="pictures of each person by each camera (2)")
    parser.add_argument("--cameras", type=int, default=6, help="how many cameras (default: 6)")
    parser.add_argument("--height", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--width", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything (default: 0)")
    options = vars(parser.parse_args())
    try:
        path = write_synthetic(options.pop("root"), **options)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    print(load_market1501(path, name="synthetic").summary())
    print(f"in {path}")


if __name__ == "__main__":
    main()
