"""The library's warnings as lines of a script."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """What is warned of in the block is printed after it, a line each, without the line of code it came from.

    Example:
        >>> with one_line_warnings():
        ...     warnings.warn("the cake is cut", stacklevel=1)
        warning: the cake is cut
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for one in caught:
        print(f"warning: {one.message}")
