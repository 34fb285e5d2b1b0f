"""make gpu-check: builds, tests, sanitizes, benchmarks and profiles on this machine's GPU, in under eight minutes.

    python -m benches.gpu_check                              # everything
    python -m benches.gpu_check --only bench --rows dmli     # one part, some rows
    python -m benches.gpu_check --device cpu --size small    # the same way with tiny sizes and no GPU

It needs a Python with torch, setuptools, ninja and pytest, a C++ compiler and nvcc; no network. Each part has a limit
of time, none stops another, and results.json in the output folder is written again after every step. The exit status
is 1 if building, testing or sanitizing failed, whatever the figures are; not where the sanitizer itself died in some
calls: these are named, and its part is "incomplete".
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benches import parts, process, report, rows

# Parts of a stage may run at the same time. Limits are in seconds.
STAGES = (("build",), ("tests", "memcheck", "racecheck"), ("bench",), ("time",), ("step",), ("profile",))
LIMITS = {
    "build": 150, "tests": 150, "memcheck": 120, "racecheck": 120, "bench": 160, "time": 35, "step": 45, "profile": 60,
}  # fmt: skip
DECISIVE = ("build", "tests", "memcheck", "racecheck")  # for the exit status
TESTS = ("tests/reidops",)


class Check:
    """One run: what was asked for, the results so far, and the files they are kept in."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.rows = rows.select(args.rows, args.size)
        self.end = time.monotonic() + 60 * args.minutes
        self.ends: dict[str, float] = {}  # of each part
        self.results: dict[str, Any] = {
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": process.commit(),
            "device": args.device,
            "size": args.size,
            "machine": {},
            "ceilings": {},
            "parts": {},
            "rows": [],
            "times": [],
            "kernels": [],
        }
        self.lock = threading.RLock()
        self.folder = args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))

    def log(self, part: str) -> Path:
        return self.folder / f"{part}.log"

    def left(self, part: str) -> float:
        """Seconds that a part may still take."""
        return max(self.ends[part] - time.monotonic(), 0)

    def write(self) -> None:
        """All results so far, whole or not at all."""
        with self.lock:
            process.write(self.folder / "results.json", json.dumps(self.results, indent=1) + "\n")

    def run(self, part: str) -> None:
        """One part; whatever goes wrong in it becomes its result."""
        begin = time.monotonic()
        self.ends[part] = min(begin + self.args.limit.get(part, LIMITS[part]), self.end)
        self.log(part).unlink(missing_ok=True)
        print(f"{part}: at most {self.left(part):.0f} s", flush=True)
        try:
            result = parts.PARTS[part](self) if self.left(part) > 1 else {"status": "skipped", "why": "no time left"}
        except Exception as error:
            result = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - begin, 1)
        with self.lock:
            self.results["parts"][part] = result
            self.write()
        print(report.part_line(part, result), flush=True)

    def passed(self) -> bool:
        found = self.results["parts"]
        return all(found[part]["status"] in ("passed", "incomplete") for part in DECISIVE if part in found)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [part for stage in STAGES for part in stage]
    parser = argparse.ArgumentParser(prog="python -m benches.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(names), help="comma-separated parts (default: %(default)s)")
    parser.add_argument("--rows", help="comma-separated parts of the names of the benchmark's rows (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=rows.SIZES, default="full", help="of the benchmark's rows")
    parser.add_argument("--seconds", type=float, default=0.6, help="of timed calls for each contestant of a row")
    default = os.environ.get("OUT") or "runs/gpu-check"
    parser.add_argument(
        "--out", type=Path, default=Path(default), help="folder to write to (default: $OUT, else %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=7.8, help="for everything (default: %(default)s)")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="for one part; may be repeated"
    )
    parser.add_argument(
        "--tests", type=Path, nargs="*", help="files or folders of tests (default: those of the operators)"
    )
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    try:
        args.limit = {part: float(seconds) for part, seconds in (limit.split("=") for limit in args.limit)}
        rows.select(args.rows, args.size)
    except ValueError as error:
        parser.error(str(error))
    unknown = {*args.only, *args.limit} - {*names}
    if unknown:
        parser.error(f"parts are {', '.join(names)}, got {', '.join(sorted(unknown))}")
    args.out = args.out.absolute()
    args.tests = [path.absolute() for path in args.tests or [process.ROOT / path for path in TESTS]]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    check = Check(parse(argv))
    try:
        for stage in STAGES:
            chosen = [part for part in stage if part in check.args.only]
            with ThreadPoolExecutor(len(stage)) as pool:
                list(pool.map(check.run, chosen))
            if stage == STAGES[0]:  # now that it is built, if it is
                check.results["machine"] = parts.machine(check)
                check.write()
    finally:
        process.kill_all()
        shutil.rmtree(check.scratch, ignore_errors=True)
    print(f"\n{report.summary(check.results)}\nwritten: {check.folder / 'results.json'}")
    return 0 if check.passed() else 1


def interrupted(*_: Any) -> None:
    process.kill_all()
    os._exit(130)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    sys.exit(main())
