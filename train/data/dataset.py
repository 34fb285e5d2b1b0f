"""What every data set here is: three lists of samples, and the reader that turns samples into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from train.data.counts import Counts, SubsetCounts, count_warning

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
SUBSETS = ("train", "query", "gallery")


class Sample(NamedTuple):
    """One image: where it is, who is on it, and which camera took it."""

    path: str
    identity: int
    camera: int


@dataclass(frozen=True)
class ReIDDataset:
    """A re-identification data set.

    Attributes:
        name: what it was loaded as.
        train: identities relabelled 0..K-1 in the order of their original numbers.
        query: identities and cameras as in the file names.
        gallery: the same; identity 0 of Market-1501 is a distractor that matches nobody.
        official: the counts it should have; None where nobody has published any.

    Example:
        >>> data = ReIDDataset("two", [Sample("a.jpg", 0, 1), Sample("b.jpg", 0, 2)], [], [])
        >>> data.num_train_identities
        1
        >>> print(data.summary())
        two
        subset  |  # ids | # images | # cameras
        --------+--------+----------+----------
        train   |      1 |        2 |         2
        query   |      0 |        0 |         0
        gallery |      0 |        0 |         0
    """

    name: str
    train: list[Sample]
    query: list[Sample]
    gallery: list[Sample]
    official: SubsetCounts | None = None

    @property
    def num_train_identities(self) -> int:
        """How many people there are to classify in training."""
        return len({sample.identity for sample in self.train})

    def counts(self) -> dict[str, Counts]:
        """Identities and images of each subset."""
        subsets = {subset: getattr(self, subset) for subset in SUBSETS}
        return {subset: Counts(len({one.identity for one in some}), len(some)) for subset, some in subsets.items()}

    def count_warning(self) -> str | None:
        """One line that names every difference from the official counts; None where there is none."""
        return None if self.official is None else count_warning(self.name, self.counts(), self.official)

    def summary(self) -> str:
        """The field's table of counts, one line a subset, and below it the warning where these are not the official."""
        lines = [self.name, "subset  |  # ids | # images | # cameras", "--------+--------+----------+----------"]
        for subset, count in self.counts().items():
            cameras = len({sample.camera for sample in getattr(self, subset)})
            lines.append(f"{subset:7s} | {count.identities:6d} | {count.images:8d} | {cameras:9d}")
        if (warning := self.count_warning()) is not None:
            lines.append(warning)
        return "\n".join(lines)


class ImageDataset(Dataset):
    """Reads the images of a list of samples, for a ``torch.utils.data.DataLoader``.

    Args:
        samples: what to read, in this order.
        transform: applied to each RGB ``PIL.Image``; None leaves the image as it is.

    Returns (by index):
        ``(image, identity, camera)``.

    Raises:
        OSError: an image is missing or cannot be read; the message names the file.
    """

    def __init__(self, samples: list[Sample], transform: Callable[[Image.Image], Any] | None = None):
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        path, identity, camera = self.samples[index]
        image = read_image(path)
        return (image if self.transform is None else self.transform(image)), identity, camera


def read_image(path: str | Path) -> Image.Image:
    """Reads one image as 8-bit RGB, upright as its EXIF data say, and on white where it is transparent.

    Args:
        path: any image that Pillow reads; whole numbers of more than 8 bits are taken as 16-bit grey.

    Returns:
        The image.

    Raises:
        OSError: it is missing or cannot be read; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's readers meet damaged bytes with errors of many kinds
        raise OSError(f"cannot read the image '{path}': {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip 16 bits to 8, and nearly all of the picture to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # convert() would show the colours that lie hidden where nothing is to be seen
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def list_images(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, sorted by name; hidden and other files are passed over."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_EXTENSIONS and not entry.name.startswith(".") and entry.is_file()
    )


def relabel(samples: Iterable[Sample]) -> list[Sample]:
    """Numbers the identities 0..K-1 in the order of their original numbers."""
    samples = list(samples)
    labels = {identity: label for label, identity in enumerate(sorted({sample.identity for sample in samples}))}
    return [sample._replace(identity=labels[sample.identity]) for sample in samples]
