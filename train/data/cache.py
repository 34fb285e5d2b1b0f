"""A cache of decoded images: in memory that processes share, or in a memory-mapped file that later runs use too.

What comes out of it is, to the last bit, what ``read_image`` gives: each image at its own size.

A file holds the pixels of a list of images one after the other, then JSON that says which files they were read from,
where each begins, how high and wide it is and how many bytes all have, then the length of the JSON in 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from train.data.dataset import BadImage, read_image
from train.data.scan import each, find_bad
from train.files import temporary_name

FORMAT = 2  # raised whenever the same images would be stored otherwise
HOUR = 3600
ELSEWHERE = "give a folder on another disk, or --cache off"


class ImageCache:
    """Reads images as ``read_image`` does, those that it holds without decoding them.

    Processes that a loader forks or spawns get it with their data set, and share its pixels.

    Args:
        place: ``"ram"``, or the folder for files.
        workers: processes that decode what is taken in; 0 decodes in this one.
        quiet: no progress bar and no words.

    Raises:
        ValueError: ``place`` is empty.

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
        if not os.fspath(place).strip():
            raise ValueError(f"the cache should be ram or a folder, got '{place}'")
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
        _make_folder(self.folder)
        names = "\n".join(name for name, *_ in files)
        file = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.images"
        found = _find(file, files)
        if found is None:
            return self._fill(paths, files, file, what, skip)
        self._say(f"cache: {what} from {file}")
        self._hold(paths, *found)
        others = [path for path in paths if path not in self.places]
        return find_bad(others, what=what, skip=skip, quiet=self.quiet)

    def _fill(self, paths: Sequence[str], files: Sequence, file: Path | None, what: str, skip: bool) -> dict[str, str]:
        """Decodes images into a new store."""
        sizes = list(each(_Sizes(paths), self.workers, f"{what}: sizes", self.quiet))
        starts = np.cumsum([0, *sizes]).tolist()
        total = starts.pop()
        self._say(f"cache: {what}, {len(paths)} images, {_bytes(total)} {'in memory' if not file else f'in {file}'}")
        if file is None:
            _require_memory(total)
            shapes, bad = self._decode(paths, sizes, starts, store := _Memory(total), what, skip)
            self._hold(paths, starts, shapes, store)
            return bad
        _require_disk(total, file)
        temporary = temporary_name(file)
        try:
            with _writing(file):
                temporary.touch()
            shapes, bad = self._decode(paths, sizes, starts, _Writer(temporary, file), what, skip)
            index = {"files": files, "total": total, "starts": starts, "shapes": shapes}
            with _writing(file):
                _write_index(temporary, index)
            found = _find(file, files)  # another run may have filled it meanwhile, and its processes read on from it
            if found is None:
                found = _read(temporary, files)
                with _writing(file):
                    os.replace(temporary, file)
                found[-1].path = file
        finally:
            temporary.unlink(missing_ok=True)
        self._hold(paths, *found)
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
    """Pixels of a file, mapped; a process that gets this by pickling maps the file again when it first reads."""

    def __init__(self, path: Path, mapped: np.ndarray, index: bytes):
        self.path, self.mapped = path, mapped
        self.made_of = hashlib.sha256(index).hexdigest()

    @property
    def pixels(self) -> np.ndarray:
        """All bytes; OSError if the file holds others by now than when it was opened."""
        if self.mapped is None:
            self.mapped = self._map_again()
        return self.mapped

    def _map_again(self) -> np.ndarray:
        try:
            mapped, index = _map(self.path)
            if hashlib.sha256(index).hexdigest() == self.made_of:  # another run may have written it, of the same images
                return mapped
        except (OSError, ValueError):
            pass
        raise OSError(f"the cache '{self.path}' was removed or made anew while this run read it: start again")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "mapped": None}


class _Writer:
    """A file that processes write pixels to, each in its places; `file` is the name that it will have."""

    def __init__(self, temporary: Path, file: Path):
        self.temporary, self.file = temporary, file

    def write(self, start: int, pixels: np.ndarray) -> None:
        with _writing(self.file), open(self.temporary, "r+b") as stream:
            stream.seek(start)
            stream.write(pixels.tobytes())


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Says of what cannot be written which file it is for, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write the cache '{file}': {error.strerror or error}: {ELSEWHERE}") from error


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


def _write_index(file: Path, index: dict[str, Any]) -> None:
    """Ends a file of pixels, and sees it onto the disk."""
    text = json.dumps({"format": FORMAT, **index}).encode()
    with open(file, "r+b") as stream:
        stream.seek(index["total"])
        stream.write(text + len(text).to_bytes(8, "little"))
        stream.flush()
        os.fsync(stream.fileno())


def _map(file: Path) -> tuple[np.ndarray, bytes]:
    """All of a file, mapped, and the JSON at its end; ValueError if it is too short to have one."""
    mapped = np.memmap(file, np.uint8, "r")
    end = len(mapped) - 8
    length = int.from_bytes(mapped[max(end, 0) :].tobytes(), "little")
    if length > end:
        raise ValueError(f"{file} ends too early")
    return mapped, mapped[end - length : end].tobytes()


def _read(file: Path, files: Sequence) -> tuple[list[int], list[list[int]], _File]:
    """Where the images of a file begin, their heights and widths, and the file.

    ValueError, KeyError, TypeError or RecursionError unless it is whole and was made of just these images.
    """
    mapped, text = _map(file)
    index = json.loads(text)
    if index["format"] != FORMAT or index["files"] != files or index["total"] + len(text) + 8 != len(mapped):
        raise ValueError(f"{file} is not whole, or of other images")
    for _, start, (height, width) in zip(files, index["starts"], index["shapes"], strict=True):
        numbers = (start, height, width)
        if {*map(type, numbers)} != {int} or min(numbers) < 0 or start + 3 * height * width > index["total"]:
            raise ValueError(f"{file} has an image that does not lie in it")
    return index["starts"], index["shapes"], _File(file, mapped, text)


def _find(file: Path, files: Sequence) -> tuple[list[int], list[list[int]], _File] | None:
    """What `_read` gives; None for a file that is to be filled again, whatever is wrong with it."""
    try:
        return _read(file, files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _bytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        part = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
        raise NotADirectoryError(
            f"the cache should lie in a folder, got '{folder}', and '{part}' is a file: give another, or --cache off"
        ) from None
    except OSError as error:
        raise OSError(
            f"cannot make the folder '{folder}' for the cache: {error.strerror}: give another, or --cache off"
        ) from error


def _require_disk(needed: int, file: Path) -> None:
    for part in file.parent.glob(f"{file.name}.*.part"):  # of a run that was killed while it wrote
        with suppress(FileNotFoundError):  # another run has just finished with it
            if time.time() - part.stat().st_mtime > HOUR:
                part.unlink()
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(
            f"the cache needs {_bytes(needed)} in '{file.parent}', where {_bytes(free)} are free: {ELSEWHERE}"
        )


def _require_memory(needed: int) -> None:
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine, each with its own
    free = _free_memory()
    if free is not None and copies * needed > free:
        each_one = f" in each of {copies} processes" if copies > 1 else ""
        raise OSError(
            f"the cache needs {_bytes(needed)} of memory{each_one}, and {_bytes(free)} are free for sharing: "
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
