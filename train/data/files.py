"""Data sets are written beside their place, moved there when complete, and known again by their stamp."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.data.dataset import list_images


@contextmanager
def new_folder(target: Path, stamp: str) -> Iterator[Path]:
    """Gives an empty folder to fill, and puts it in the place of ``target`` when the block ends without an error.

    Args:
        target: the folder to make or to replace.
        stamp: the file that marks a folder as ours; an existing folder without it is never replaced.

    Raises:
        FileExistsError: ``target`` holds something that was not made here.
    """
    _require_ours(target, stamp)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        filled = work / "new"
        filled.mkdir()
        yield filled
        _put_in_place(filled, target, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def resumed_folder(target: Path, stamp: str, plan: dict[str, Any]) -> Iterator[Path]:
    """As ``new_folder``, but what an interrupted block has filled is there again for the next one of the same plan.

    The folder is filled beside its place, in ``.NAME.part``, which stays when the block ends with an error. Files have
    to be written whole there (``train.files.written_whole``), so that one by the right name is never half of one.

    Args:
        target: the folder to make or to replace.
        stamp: the file that marks a folder as ours.
        plan: all that decides what the folder will hold; what was filled by another plan is thrown away.

    Raises:
        FileExistsError: ``target`` holds something that was not made here, or another process is filling it now.
    """
    _require_ours(target, stamp)
    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    filled, words = work / "new", json.dumps(plan, sort_keys=True)
    with open(work / "plan.json", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the two words for a lock that another process has
            raise FileExistsError(f"'{work}' is being filled by another process: wait for that, or end it") from None
        file.seek(0)
        if file.read() != words:
            if filled.exists():
                shutil.rmtree(filled)
            file.truncate(0)
            file.write(words)
            file.flush()
        filled.mkdir(exist_ok=True)
        yield filled
        _put_in_place(filled, target, work / "old")
        shutil.rmtree(work)


def _require_ours(target: Path, stamp: str) -> None:
    if target.exists() and not (target / stamp).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"'{target}' exists and holds no {stamp}: it was not made here and is left alone")


def _put_in_place(filled: Path, target: Path, old: Path) -> None:
    """Moves a filled folder to its place, and what is there out of the way; that comes back if the move fails."""
    if old.exists():  # what an earlier run, interrupted between the two moves, was to replace
        shutil.rmtree(old)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(filled, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


def write_stamp(folder: Path, name: str, content: dict[str, Any], subsets: Sequence[str]) -> None:
    """Writes what a folder was made from, and the fingerprint of the images written there, as JSON."""
    stamp = {**content, "images": fingerprint(folder, subsets)}
    (folder / name).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def has_stamp(folder: Path, name: str, content: dict[str, Any], subsets: Sequence[str]) -> bool:
    """Whether a folder was made from just this, and its images still have the names and sizes they were given."""
    try:
        stamp = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stamp == {**content, "images": fingerprint(folder, subsets)}


def fingerprint(home: Path, subsets: Sequence[str], *, contents: bool = False) -> str:
    """A digest of the names and sizes of all images in some folders of ``home``, and of their bytes if asked."""
    digest = hashlib.sha256()
    for subset in subsets:
        for path in list_images(home / subset) if (home / subset).is_dir() else ():
            digest.update(os.fsencode(f"{subset}/{path.name} {path.stat().st_size}\n"))
            if contents:
                digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process into the block, the others waiting; ``path`` is the file they meet at, gone when all are done.

    The file is removed by whoever holds it. One who waited for it then holds a file that nobody else can come to, and
    so begins anew.
    """
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def remove_left_overs(target: Path) -> None:
    """Removes what ``new_folder`` had begun for a target when it was killed; nobody may be filling it now."""
    for work in target.parent.glob(f".{target.name}.*"):
        if work.is_dir():
            shutil.rmtree(work, ignore_errors=True)
