"""Flags that a checkpoint remembers, so that weights meet the model and the training they were made for."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Settings(NamedTuple):
    """Values of flags, and what each of them is tied to.

    Attributes:
        values: flag names to values.
        model: those without which the weights have no meaning.
        training: those a training goes on with.
        kept: those whose first values stay, being part of the optimizer's and the scheduler's state.
    """

    values: dict[str, str | int | float]
    model: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def read_settings(content: Mapping, path: str | os.PathLike) -> dict[str, str | int | float]:
    """The settings in a checkpoint; none in one that keeps none, such as a published one."""
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping) or not all(isinstance(x, str | int | float) for x in settings.values()):
        raise ValueError(f"checkpoint {path} should hold settings by name, got {settings!r}")
    return dict(settings)


def read_training_set(content: Mapping, path: str | os.PathLike) -> str | None:
    """The data set that a checkpoint says it was trained on; None where it does not, as a published one."""
    name = read_settings(content, path).get("dataset")
    return name if isinstance(name, str) else None


def require_settings(content: Mapping, wanted: Mapping, names: Sequence[str], path: str | os.PathLike) -> None:
    """Refuse a checkpoint whose training differs in these settings from this run (ValueError, listing the flags).

    Args:
        content: the dict that was read.
        wanted: settings of this run.
        names: which of them have to agree, where both tell.
        path: where the checkpoint came from, for the message.
    """
    found = read_settings(content, path)
    differing = [name for name in names if name in found and name in wanted and found[name] != wanted[name]]
    if differing:
        theirs, ours = (" ".join(flag(name, values) for name in differing) for values in (found, wanted))
        raise ValueError(f"checkpoint {path} was trained with {theirs}, and this run has {ours}: give {theirs}")


def flag(name: str, settings: Mapping) -> str:
    """A setting as it is given on the command line."""
    value, word = settings[name], f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return word if value else f"(no {word})"
    return f"{word} {value}"
