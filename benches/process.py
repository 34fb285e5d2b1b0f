"""Other programs, run with a limit of time, everything they print in a file, nothing left behind; files; the commit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}

running: set[subprocess.Popen] = set()


class Outcome(NamedTuple):
    code: int | None  # None: it ran out of time, or `stop` said so
    seconds: float
    output: str

    def tail(self, lines: int = 15) -> str:
        """The last lines, the last of them first, as it mostly is the reason."""
        return "\n".join(self.output.strip().splitlines()[: -lines - 1 : -1])


def run(
    command: Sequence[str | Path],
    log: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run a command in the checkout for at most so many seconds, its output added to `log`.

    `stop` is asked ten times a second whether it should end now; then, as when time is up, it and what it started are
    killed.
    """
    begin = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        file.flush()
        written = file.tell()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env={**os.environ, **(environment or {})}, **GROUP,
        )  # fmt: skip
    running.add(process)
    try:
        while process.poll() is None and time.monotonic() - begin < seconds and not stop():
            time.sleep(0.1)
        code = process.poll()
    finally:
        kill(process)
        running.discard(process)
    with log.open("rb") as file:
        file.seek(written)
        output = file.read().decode(errors="replace")
    return Outcome(code, time.monotonic() - begin, output)


def python(module: str, *arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", module, *arguments]


def write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)


def kill(process: subprocess.Popen) -> None:
    """The process, if it still runs, and whatever it left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def kill_all() -> None:
    for process in list(running):
        kill(process)


def commit() -> str | None:
    """REIDOPS_COMMIT, for a copy of the files without their history, else what git says."""
    if os.environ.get("REIDOPS_COMMIT"):
        return os.environ["REIDOPS_COMMIT"]
    with contextlib.suppress(OSError):
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
        if head.returncode == 0:
            return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")
    return None
