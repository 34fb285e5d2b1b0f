"""A cache of decoded images: in memory that processes share, or in a memory-mapped file that later runs use too.

What comes out of it is, to the last bit, what ``read_image`` gives: each image at its own size.

A file holds the pixels of a list of images one after the other, then JSON that says which files they were read from,
where each begins and how high and wide it is, then the length of the JSON in 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from train.data.dataset import BadImage, read_image
from train.data.scan import each, find_bad
from train.files import written_whole

FORMAT = 1  # raised whenever the same images would be stored otherwise
HOUR = 3600


class ImageCache:
    """Reads images as ``read_image`` does, those that it holds without decoding them.

    Processes that a loader forks or spawns get it with their data set, and share its pixels.

    Args:
        place: ``"ram"``, or the folder for files.
        workers: processes that decode what is taken in; 0 decodes in this one.
        quiet: no progress bar and no words.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> cache = ImageCache("ram", quiet=True)
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/red.png"
        ...     Image.new("RGB", (4, 8), "red").save(path)
        ...     bad = cache.add([path])
        >>> cache(path).size, bad
        ((4, 8), {})
    """

    def __init__(self, place: str | os.PathLike, workers: int = 0, quiet: bool = False):
        self.folder = None if place == "ram" else Path(place).expanduser()
        self.workers, self.quiet = workers, quiet
        self.places: dict[str, tuple[int, int, int, int]] = {}  # path: number of the store, offset, height, width
        self.stores: list[_Memory | _File] = []

    def __call__(self, path: str) -> Image.Image:
        """The image of a path; one that is not held is read from its file, with the errors of ``read_image``."""
        if path not in self.places:
            return read_image(path)
        store, start, height, width = self.places[path]
        pixels = self.stores[store].pixels[start : start + 3 * height * width]
        return Image.fromarray(pixels.reshape(height, width, 3))

    def add(self, paths: Sequence[str], *, what: str = "images", skip: bool = False) -> dict[str, str]:
        """Takes images in: decodes them, or finds them in a file that was made of them as they are now.

        Args:
            paths: image files.
            what: they are, for words and progress bar.
            skip: go on past images that cannot be read.

        Returns:
            The reason for each image that cannot be read, by its path; the cache does not hold those.

        Raises:
            BadImage: the first image that cannot be read, without ``skip``.
            OSError: there is no room in memory or on the disk, or the folder cannot be written to.
        """
        paths = list(dict.fromkeys(paths))
        files = [_describe(path) for path in paths]
        if self.folder is None:
            return self._fill(paths, files, None, what, skip)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"the cache should lie in a folder, got the file '{self.folder}'") from None
        names = "\n".join(name for name, *_ in files)
        file = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.images"
        index = _read_index(file, files)
        if index is None:
            return self._fill(paths, files, file, what, skip)
        self._say(f"cache: {what} from {file}")
        self._hold(paths, index["starts"], index["shapes"], _File(file))
        others = [path for path in paths if path not in self.places]
        return find_bad(others, what=what, skip=skip, quiet=self.quiet)

    def _fill(self, paths: Sequence[str], files: Sequence, file: Path | None, what: str, skip: bool) -> dict[str, str]:
        """Decodes images into a new store."""
        sizes = list(each(_Sizes(paths), self.workers, f"{what}: sizes", self.quiet))
        starts = np.cumsum([0, *sizes]).tolist()
        total = starts.pop()
        self._say(
            f"cache: {what}, {len(paths)} images, {total / 1e9:.2f} GB {'in memory' if not file else f'in {file}'}"
        )
        if file is None:
            _require_memory(total)
            shapes, bad = self._decode(paths, sizes, starts, store := _Memory(total), what, skip)
        else:
            _require_disk(total, file)
            with written_whole(file) as temporary:
                temporary.touch()
                shapes, bad = self._decode(paths, sizes, starts, _Writer(temporary), what, skip)
                _write_index(temporary, total, {"files": files, "starts": starts, "shapes": shapes})
            store = _File(file)
        self._hold(paths, starts, shapes, store)
        return bad

    def _decode(
        self, paths: Sequence[str], sizes: Sequence[int], starts: Sequence[int], store: _Memory | _Writer,
        what: str, skip: bool,
    ) -> tuple[list[tuple[int, int]], dict[str, str]]:  # fmt: skip
        """Heights and widths of the images that went into a store, 0 for others; and why images cannot be read."""
        shapes, bad = [], {}
        work = _Pixels(paths, sizes, starts, store)
        for path, (height, width, reason) in zip(paths, each(work, self.workers, what, self.quiet), strict=True):
            if reason and not skip:
                raise BadImage(reason)
            if reason:
                bad[path] = reason
            shapes.append((height, width))
        return shapes, bad

    def _hold(self, paths: Sequence[str], starts: Sequence[int], shapes: Sequence, store: _Memory | _File) -> None:
        for path, start, (height, width) in zip(paths, starts, shapes, strict=True):
            if height * width:
                self.places[path] = (len(self.stores), start, height, width)
        self.stores.append(store)

    def _say(self, words: str) -> None:
        if not self.quiet:
            print(words, flush=True)


class _Memory:
    """Pixels in memory that all processes share, however they are started."""

    def __init__(self, size: int):
        self.tensor = torch.empty(size, dtype=torch.uint8).share_memory_()

    @property
    def pixels(self) -> np.ndarray:
        """All bytes."""
        return self.tensor.numpy()

    def write(self, start: int, pixels: np.ndarray) -> None:
        self.pixels[start : start + pixels.size] = pixels.reshape(-1)


class _File:
    """Pixels of a file, mapped; a process that gets this by pickling maps the file again."""

    def __init__(self, path: Path):
        self.path = path
        self.pixels = np.memmap(path, np.uint8, "r")
        self.version = self._look()

    def _look(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_ino, status.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "version": self.version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])
        if self.version != state["version"]:
            raise OSError(f"the cache {self.path} was made anew by another run while this one read it: start again")


class _Writer:
    """A file that processes write pixels to, each in its places."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, start: int, pixels: np.ndarray) -> None:
        with open(self.path, "r+b") as file:
            file.seek(start)
            file.write(pixels.tobytes())


class _Sizes(Dataset):
    """For each image its bytes when decoded, as its header tells; 0 where that cannot be read."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        try:
            with Image.open(self.paths[index]) as image:
                return 3 * image.width * image.height
        except Exception:  # whatever it is, decoding will say it
            return 0


class _Pixels(Dataset):
    """Decodes each image into a store. Gives height, width and, if it cannot be read, the reason."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[int], starts: Sequence[int], store: _Memory | _Writer):
        self.paths, self.sizes, self.starts, self.store = paths, sizes, starts, store

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, int, str]:
        try:
            pixels = np.asarray(read_image(self.paths[index]))
        except BadImage as error:
            return 0, 0, str(error)
        if pixels.size != self.sizes[index]:  # its header tells otherwise: it will be read from its own file
            return 0, 0, ""
        self.store.write(self.starts[index], pixels)
        return *pixels.shape[:2], ""


def _describe(path: str) -> list[str | int]:
    """What tells an image file from another: its whole name, its size and when it was written; 0 if it is not there."""
    name = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError:
        return [name, 0, 0]
    return [name, status.st_size, status.st_mtime_ns]


def _write_index(file: Path, start: int, index: dict[str, Any]) -> None:
    """Ends a file of pixels."""
    text = json.dumps({"format": FORMAT, **index}).encode()
    with open(file, "r+b") as stream:
        stream.seek(start)
        stream.write(text + len(text).to_bytes(8, "little"))


def _read_index(file: Path, files: Sequence) -> dict[str, Any] | None:
    """The index of a file of pixels; None unless the file is whole and was made of just these images."""
    try:
        with open(file, "rb") as stream:
            end = stream.seek(-8, os.SEEK_END)
            length = int.from_bytes(stream.read(8), "little")
            stream.seek(max(end - length, 0))
            index = json.loads(stream.read(min(length, end)))
    except (OSError, ValueError):
        return None
    return index if index.get("format") == FORMAT and index["files"] == files else None


def _require_disk(needed: int, file: Path) -> None:
    for part in file.parent.glob(f"{file.name}.*.part"):  # of a run that was killed while it wrote
        if time.time() - part.stat().st_mtime > HOUR:
            part.unlink(missing_ok=True)
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(
            f"the cache needs {needed / 1e9:.2f} GB in '{file.parent}', where {free / 1e9:.2f} GB are free: give a "
            f"folder on another disk, or --cache off"
        )


def _require_memory(needed: int) -> None:
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine, each with its own
    free = _free_memory()
    if free is not None and copies * needed > free:
        each_one = f" in each of {copies} processes" if copies > 1 else ""
        raise OSError(
            f"the cache needs {needed / 1e9:.2f} GB of memory{each_one}, and {free / 1e9:.2f} GB are free for sharing: "
            f"give a folder for it instead (--cache DIR), or --cache off"
        )


def _free_memory() -> int | None:
    """Bytes that processes can share: what the system, the container and /dev/shm have free; None if none tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        found.append(shutil.disk_usage("/dev/shm").free)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit != "max":
            found.append(int(limit) - int(used["anon"]) - int(used["shmem"]))
    except (OSError, ValueError, KeyError):
        pass
    return min(found, default=None)
