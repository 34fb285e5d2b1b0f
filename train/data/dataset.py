"""What every data set here is: three lists of samples, and the reader that turns samples into tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from train.data.counts import Counts, SubsetCounts, count_warning

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
SUBSETS = ("train", "query", "gallery")


class Sample(NamedTuple):
    """One image: where it is, who is on it, and which camera took it."""

    path: str
    identity: int
    camera: int


class BadImage(OSError):
    """An image that cannot be read; the message, of one line, names the file and says why."""


class MissingImage(BadImage, FileNotFoundError):
    """An image whose file is not there."""


@dataclass(frozen=True)
class ReIDDataset:
    """A re-identification data set.

    Attributes:
        name: what it was loaded as.
        train: identities relabelled 0..K-1 in the order of their original numbers.
        query: identities and cameras as in the file names.
        gallery: the same; identity 0 of Market-1501 is a distractor that matches nobody.
        official: the counts it should have; None where nobody has published any.
        read: what reads its images, for ``ImageDataset``; None for ``read_image``.
        skipped: the files that were taken out of each subset because they cannot be read.

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
    read: Callable[[str], Image.Image] | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)

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
        read: what reads a path, such as an ``ImageCache``; None for ``read_image``.

    Returns (by index):
        ``(image, identity, camera)``.

    Raises:
        BadImage: an image is missing or cannot be read; the message names the file.
    """

    def __init__(
        self,
        samples: list[Sample],
        transform: Callable[[Image.Image], Any] | None = None,
        read: Callable[[str], Image.Image] | None = None,
    ):
        self.samples = samples
        self.transform = transform
        self.read = read_image if read is None else read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        path, identity, camera = self.samples[index]
        image = self.read(path)
        return (image if self.transform is None else self.transform(image)), identity, camera


def read_image(path: str | Path) -> Image.Image:
    """Reads one image as 8-bit RGB, upright as its EXIF data say, and on white where it is transparent.

    Args:
        path: any image that Pillow reads; whole numbers of more than 8 bits are taken as 16-bit grey.

    Returns:
        The image.

    Raises:
        MissingImage: there is no such file.
        BadImage: it cannot be read, is cut off, or is damaged in a way that its format shows: a PNG is held to its
            checksums; damage inside a JPEG shows only where the decoder stumbles over it.
    """
    try:
        with Image.open(path) as image:
            _verify(path, image)
            return _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise MissingImage(f"cannot read the image '{path}': there is no such file") from None
    except UnidentifiedImageError as error:
        reason = "it is no image, or its beginning is damaged" if Path(path).stat().st_size else "the file is empty"
        raise BadImage(f"cannot read the image '{path}': {reason}") from error
    except Exception as error:  # Pillow's readers meet damaged bytes with errors of many kinds
        raise BadImage(f"cannot read the image '{path}': {' '.join(str(error).split())}") from error


def _verify(path: str | Path, image: Image.Image) -> None:
    """Finds damage that decoding passes over: a PNG whose checksums are wrong, a JPEG whose rest became zeros."""
    if image.format == "PNG":
        with Image.open(path) as again:  # what was verified cannot be decoded
            again.verify()
    elif image.format == "JPEG":
        image.fp.seek(-2, os.SEEK_END)
        if image.fp.read() == b"\0\0" and not Path(path).read_bytes().rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError("its end is lost: there are only zeros")


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
