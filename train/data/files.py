"""Data sets are written beside their place and moved there when complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(target: Path, stamp: str) -> Iterator[Path]:
    """Gives an empty folder to fill, and puts it in the place of ``target`` when the block ends without an error.

    Args:
        target: the folder to make or to replace.
        stamp: the file that marks a folder as ours; an existing folder without it is never replaced.

    Raises:
        FileExistsError: ``target`` holds something that was not made here.
    """
    if target.exists() and not (target / stamp).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"'{target}' exists and holds no {stamp}: it was not made here and is left alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        filled = work / "new"
        filled.mkdir()
        yield filled
        old = work / "old"
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(filled, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_stamp(path: Path, content: dict[str, Any]) -> None:
    """Writes what a folder was made from, as JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def has_stamp(path: Path, content: dict[str, Any]) -> bool:
    """Whether a folder was made from just this."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(content))
    except (OSError, ValueError):
        return False
