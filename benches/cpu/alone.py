"""One contestant of one row in a process of its own: time, peak memory, and a digest of the result's bits.

    python -m benches.cpu.alone knn --size full                              # ours, once, after a tiny call
    python -m benches.cpu.alone knn --size part --threads 8 --seconds 1      # the median of a second's calls
    python -m benches.cpu.alone k_reciprocal-market --contestant "published NumPy" --save result.pt

Prints one line of JSON.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benches import process, timing
from benches.cpu import memory, rows
from benches.cpu.contestant import CPU, OURS, mode
from benches.cpu.machine import THREADS

Figures = dict[str, Any]


def start(name: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 900) -> Figures:
    """This module in a process of its own: its figures, or {"error": why}."""
    command = [*process.python("benches.cpu.alone"), name, *arguments]
    try:
        done = subprocess.run(
            command, cwd=process.ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds:.0f} s"}
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit status {done.returncode}: {why[:300]}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Any, contestant: str, seconds: float) -> tuple[Any, Figures]:
    """Result and figures of the contestant."""
    rival = case.peers.get(contestant)
    run, inputs = (case.ours, case.inputs[0]) if rival is None else (rival.run, (rival.inputs or case.inputs)[0])
    with mode(case):
        begin = time.perf_counter()
        result, peak = memory.peak(lambda: run(*inputs))
        times = [1e3 * (time.perf_counter() - begin)]
        if seconds:
            while len(times) < 4 or sum(times) < 1e3 * seconds:
                times.append(timing.time_call(run, inputs, CPU))
            times = times[1:]  # the first warmed up
    digest = hashlib.sha256()
    for tensor in memory.tensors(result):
        digest.update(tensor.contiguous().numpy())
    return result, {
        "ms": statistics.median(times),
        "calls": len(times),
        "workspace_bytes": memory.beyond(peak, result),
        "digest": digest.hexdigest(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.cpu.alone", description=__doc__.splitlines()[0])
    parser.add_argument("row", help="name of a row")
    parser.add_argument("--size", choices=rows.SIZES, default="full")
    parser.add_argument("--dimensions", help="comma-separated numbers in place of the size's")
    parser.add_argument("--contestant", default=OURS, help="ours, or the name of a peer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--seconds", type=float, default=0, help="of timed calls after the first (default: only that)")
    parser.add_argument("--save", type=Path, help="file for the result's tensors")
    args = parser.parse_args(argv)
    row = rows.named(args.row)
    if args.dimensions:
        row = row._replace(sizes={**row.sizes, args.size: tuple(map(int, args.dimensions.split(",")))})
    torch.set_num_threads(args.threads)
    with timing.matmul_precision(row.precision):
        measure(row.case("small"), args.contestant, 0)  # libraries are loaded, threads are started
        case = row.case(args.size)
        result, figures = measure(case, args.contestant, args.seconds)
    if args.save:
        torch.save(memory.tensors(result), args.save)
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
