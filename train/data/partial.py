"""The partial set: queries of which only a part of the height is left, against whole gallery images.

As in the published experiment each query keeps a random 60-90 % of its height, at a random place, and is resized back.
A run that was interrupted goes on where it stopped when it is started again.

::

    python -m train.data.partial --dataset market1501 --root data                  # makes data/market1501_partial
    python -m train.data.partial --source data/people --target data/people_partial
"""

from __future__ import annotations

import argparse
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from train.data import load_dataset
from train.data.dataset import BadImage, list_images, read_image
from train.data.files import fingerprint, has_stamp, resumed_folder, write_stamp
from train.data.market1501 import FOLDERS, GALLERY, PARTIAL_STAMP, QUERY, TRAIN, load_partial
from train.data.paths import find_input
from train.files import written_whole
from train.lines import one_line_warnings

FORMAT = 1
SHARED = (TRAIN, GALLERY)  # the folders that are the source's own
SOURCES = ("market1501", "dukemtmcreid")  # those that have a partial set by name


def make_partial_queries(
    source_root: str | Path,
    target_root: str | Path,
    *,
    seed: int = 0,
    min_ratio: float = 0.6,
    max_ratio: float = 0.9,
    workers: int = 0,
) -> Path:
    """Writes the partial set of a data set in Market-1501's layout, unless the same one is there.

    Training and gallery folders are relative links to those of the source, or copies where the file system has no
    links. The source is only read. The set is made in ``.NAME.part`` beside its place; if that is interrupted, the next
    call with the same arguments goes on there, to the same bytes. They do not depend on the number of workers.

    Args:
        source_root: the whole data set: the folder that holds ``query/`` and the others.
        target_root: the folder to make, such as ``market1501_partial`` beside the source.
        seed: with a file's name, decides its crop.
        min_ratio: the least part of the height that is kept.
        max_ratio: the greatest.
        workers: processes that cut; 0 cuts in this one.

    Returns:
        ``target_root``.

    Raises:
        FileNotFoundError: the source, or a part of it, is missing.
        FileExistsError: the target exists and was not made here, or another process is making it.
        OSError: a query cannot be read, or its part not be written.
        RuntimeError: one of the processes was killed.
        ValueError: the ratios are out of order, source and target lie in one another, the source is itself a partial
            set, or there is no query.
    """
    if not 0 < min_ratio <= max_ratio <= 1:
        raise ValueError(f"min_ratio and max_ratio should be 0 < min <= max <= 1, got {min_ratio} and {max_ratio}")
    if seed < 0:
        raise ValueError(f"seed should be at least 0, got {seed}")
    if workers < 0:
        raise ValueError(f"workers should be at least 0, got {workers}")
    source, target = find_input(source_root, "data set").resolve(), Path(target_root)
    for folder in FOLDERS:
        if not (source / folder).is_dir():
            raise FileNotFoundError(
                f"'{source}' lacks the folder {folder}/: a partial set is made of one in Market-1501's layout, such as "
                f"{' or '.join(SOURCES)}; give the folder that holds {', '.join(FOLDERS)}"
            )
    if (source / PARTIAL_STAMP).is_file():
        raise ValueError(f"source_root should hold whole queries, got the partial set '{source}': give the whole set")
    _require_apart(source, target)
    queries = list_images(source / QUERY)
    if not queries:
        raise ValueError(f"'{source / QUERY}' holds no image")
    stamp = {
        "format": FORMAT, "seed": seed, "min_ratio": min_ratio, "max_ratio": max_ratio, "queries": len(queries),
        "source_queries": fingerprint(source, [QUERY], contents=True), "shared": fingerprint(source, SHARED),
    }  # fmt: skip
    if has_stamp(target, PARTIAL_STAMP, stamp, [QUERY]) and fingerprint(target, SHARED) == stamp["shared"]:
        return target
    with resumed_folder(target, PARTIAL_STAMP, stamp) as work:
        (work / QUERY).mkdir(exist_ok=True)
        cuts = _Cuts(queries, work / QUERY, seed, min_ratio, max_ratio)
        # A generator of its own: the loader would draw from the one that the caller may have seeded.
        loader = DataLoader(cuts, batch_size=None, num_workers=workers, generator=torch.Generator())
        for error in tqdm(loader, desc="cutting queries", unit="image", disable=None):
            if error:
                raise OSError(error)
        for left_over in (work / QUERY).glob("*.part"):  # by a process that was killed
            left_over.unlink()
        for folder in SHARED:
            _share(source / folder, work / folder, target.parent.resolve() / target.name)
        write_stamp(work, PARTIAL_STAMP, stamp, [QUERY])
    return target


def _require_apart(source: Path, target: Path) -> None:
    """Refuses a target that shares folders with the source: what is there is replaced, and the source only read."""
    if target.resolve().is_relative_to(source):
        raise ValueError(f"target_root should lie outside the source '{source}', got '{target}'")
    for folder in (source, *(source / folder for folder in FOLDERS)):  # each of these may be a link
        if folder.resolve().is_relative_to(target.resolve()):
            raise ValueError(f"target_root should not hold the source, got '{target}', which holds '{folder}'")


class _Cuts(Dataset):
    """Cuts one query an index, unless it is there; a ``DataLoader`` shares the indices out.

    What comes back is the error's message, or nothing. (Raised again by the loader, an error would bring the traceback
    of the process it arose in, and keep the processes alive for as long as somebody holds it.)
    """

    def __init__(self, queries: list[Path], folder: Path, seed: int, min_ratio: float, max_ratio: float):
        self.queries, self.folder, self.seed, self.ratios = queries, folder, seed, (min_ratio, max_ratio)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> str:
        try:
            self._write(self.queries[index])
        except BadImage as error:
            return f"{error}; put a whole file in its place, then start again"
        except OSError as error:
            return str(error)
        return ""

    def _write(self, path: Path) -> None:
        if not _is_whole(self.folder / path.name):
            image = _cut(read_image(path), np.random.default_rng([self.seed, *os.fsencode(path.name)]), *self.ratios)
            with written_whole(self.folder / path.name) as temporary:
                image.save(temporary, Image.registered_extensions()[path.suffix.lower()], quality=95)


def _is_whole(path: Path) -> bool:
    """Whether an image is there and can be read to its end, even after a power cut."""
    try:
        read_image(path)
    except OSError:
        return False
    return True


def _cut(image: Image.Image, rng: np.random.Generator, min_ratio: float, max_ratio: float) -> Image.Image:
    """Keeps a random part of the height and resizes it back."""
    kept = max(1, round(image.height * rng.uniform(min_ratio, max_ratio)))
    top = int(rng.integers(image.height - kept + 1))
    return image.crop((0, top, image.width, top + kept)).resize(image.size, Image.Resampling.BILINEAR)


def _share(folder: Path, link: Path, home: Path) -> None:
    """Makes ``link`` show ``folder``, by a link that holds once ``link`` lies in ``home``."""
    if link.is_symlink():  # this and a begun copy are an interrupted run's
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    try:
        link.symlink_to(os.path.relpath(folder, home), target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(folder, link)


def _named_source(name: str, root: Path) -> tuple[Path, Path]:
    """The folder of a data set, and that of its partial set, where ``load_dataset`` finds it under the same root."""
    root = find_input(root, f"folder for {name}")
    source = Path(load_dataset(name, root).query[0].path).parent.parent
    partial = f"{name}_partial"
    return source, source.with_name(partial) if source.samefile(root) else root / partial


def main() -> None:
    """Writes a partial set from the command line."""
    parser = argparse.ArgumentParser(description="Write the partial query set of a data set in Market-1501's layout.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", "--dataset", choices=SOURCES, help="the whole data set by its name, looked for in --root")
    source.add_argument("--source", help="the whole data set by its folder, such as data/market1501")
    parser.add_argument("--root", default="data", help="folder of --dataset (default: data)")
    parser.add_argument("--target", help="the folder to make, such as data/market1501_partial; needed with --source")
    parser.add_argument("--seed", type=int, default=0, help="decides the crops (default: 0)")
    parser.add_argument("--min-ratio", type=float, default=0.6, help="least part of the height kept (default: 0.6)")
    parser.add_argument("--max-ratio", type=float, default=0.9, help="greatest part of the height kept (default: 0.9)")
    parser.add_argument(
        "-j", "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)"
    )
    options = parser.parse_args()
    if options.source and not options.target:
        parser.error("--source needs --target, the folder to make")
    try:
        source, target = options.source, options.target
        if options.dataset:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the same is said of the set that is made
                source, beside = _named_source(options.dataset, options.root)
            target = target or beside
        path = make_partial_queries(source, target, seed=options.seed, min_ratio=options.min_ratio,
                                    max_ratio=options.max_ratio, workers=options.workers)  # fmt: skip
        name = f"{options.dataset}_partial" if options.dataset else path.name
        with one_line_warnings():
            print(load_partial(path, name=name).summary())
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: one of the processes was killed
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: the same command goes on where this one stopped\n")
    print(f"in {path}")


if __name__ == "__main__":
    main()
