"""Files are written whole or not at all: to a temporary name of this process, which then takes the right one."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """A name beside a file's own, of this process of this machine alone."""
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name of this process to write to, renamed at the end: a file by the right name is always whole."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict, path: str | os.PathLike) -> None:
    """Write a dict as indented JSON, whole or not at all; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
