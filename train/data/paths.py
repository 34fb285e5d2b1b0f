"""Finds what a person names on the command line, and makes room for what is to be written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path


def find_input(path: str | os.PathLike, what: str = "input") -> Path:
    """Finds a file or folder that is to be read: as it is named, else under the folder ``$REIDOPS_DATA``.

    Args:
        path: absolute, or relative to the working directory or to ``$REIDOPS_DATA``.
        what: what is looked for, for the error's wording.

    Returns:
        The first of the places that exists.

    Raises:
        FileNotFoundError: nothing is there; the message lists the places.

    Example:
        >>> find_input("no such folder", "data set")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: no data set at 'no such folder'...
    """
    path = Path(path).expanduser()
    shared = os.environ.get("REIDOPS_DATA")
    places = [path] if path.is_absolute() or not shared else [path, Path(shared) / path]
    for place in places:
        if place.exists():
            return place
    looked = " or ".join(f"'{place}'" for place in places)
    hint = "" if shared or path.is_absolute() else " (REIDOPS_DATA, where it would be looked for too, is not set)"
    raise FileNotFoundError(f"no {what} at {looked}{hint}")


def data_set_places(root: Path, names: Sequence[str]) -> list[Path]:
    """Where a data set may lie, whichever folder a person names: one that holds it, its own, or the archive's in that.

    Args:
        root: the folder that was named.
        names: of the data set's folder and of the one that its archive unpacks to, in any order.

    Returns:
        ``root``/name and ``root``/name/name for all names, there and in their order; then the same by folders that are
        called so but for case and punctuation; then ``root`` itself.

    Example:
        >>> [str(place) for place in data_set_places(Path("data"), ["duke"])]
        ['data/duke', 'data/duke/duke', 'data']
    """
    exact = [root / outer / inner for outer in names for inner in ("", *names)]
    outer = [root / name for name in names] + _called_alike(root, names)
    alike = [place for folder in outer for place in (folder, *_called_alike(folder, names))]
    return list(dict.fromkeys([*exact, *alike, root]))


def _called_alike(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder whose names have the letters and digits of one of some names."""
    wanted = {squeeze(name) for name in names}
    if not folder.is_dir() or not os.access(folder, os.R_OK):
        return []
    return sorted(entry for entry in folder.iterdir() if squeeze(entry.name) in wanted and entry.is_dir())


def squeeze(name: str) -> str:
    """A name's letters and digits, in lower case.

    Example:
        >>> squeeze("Market-1501-v15.09.15")
        'market1501v150915'
    """
    return re.sub("[^a-z0-9]", "", name.lower())


def prepare_output(path: str | os.PathLike) -> None:
    """Makes the folder of a file that is to be written at the end of some work, and sees before it that it can be.

    Args:
        path: the file; one that is there will be replaced.

    Raises:
        OSError: there is a folder of that name, or no file can be made there; the message names the path.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"the output should be a file, got the folder '{path}'")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"the output '{path}' should lie in a folder, and '{path.parent}' is a file") from None
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the output '{path}' lies in a folder that cannot be written to")
