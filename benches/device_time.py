"""Where a row's time on the GPU goes: every kernel's launches and time, and how far streams ran side by side.

    python -m benches.device_time --rows knn,dmli_matrix

Rows that are profiled (kernels.HOT) come first, those of one long call last. A processor has no such kernels.
Of each kernel the share of one call: launches, milliseconds in all, of the longest launch, and of the last one. `busy`
is the time in which at least one kernel ran; the kernels' sum above it is what ran beside something else.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benches import rows, timing
from benches.cases import BUILDERS
from benches.kernels import HOT, plain_name
from benches.process import write


def device_time(row: rows.Row, size: str, device: torch.device) -> dict[str, Any]:
    """The kernels of one call of a row after a first one."""
    with timing.matmul_precision(row.precision):
        case = BUILDERS[row.op](row.precision, device, *row.sizes[size])
        case.ours(*case.inputs[0])
        on_gpu = device.type == "cuda"
        wait = torch.cuda.synchronize if on_gpu else lambda: None
        wait()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
            case.ours(*case.inputs[0])
            wait()
    launches = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(event.time_range.start, event.time_range.end) for event in launches]
    result = {"name": row.name, "busy_ms": covered(spans) / 1e3, "kernels": by_kernel(launches)}
    if spans:
        result["span_ms"] = (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 1e3
    return result


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of a line some spans cover.

    Example:
        >>> covered([(0, 2), (1, 3), (5, 6)])
        4
    """
    total, reached = 0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def by_kernel(launches: Iterable[Any]) -> list[dict[str, Any]]:
    """One record a kernel, the one that takes most time first; `ours` if it is of reidops."""
    found: dict[str, dict[str, Any]] = {}
    for event in launches:
        ms = (event.time_range.end - event.time_range.start) / 1e3
        empty = {"ours": "reidops::" in event.name, "launches": 0, "ms": 0.0, "longest_ms": 0.0, "last_ms": 0.0}
        record = found.setdefault(plain_name(event.name), empty)
        record["launches"] += 1
        record["ms"] += ms
        record["longest_ms"] = max(record["longest_ms"], ms)
        record["last_ms"] = ms
    records = [{"kernel": name, **record} for name, record in found.items()]
    return sorted(records, key=lambda record: -record["ms"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.device_time", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="comma-separated parts of row names (default: all)")
    parser.add_argument("--size", choices=rows.SIZES, default="full")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--output", type=Path, help="file of JSON to write")
    args = parser.parse_args(argv)
    found = []
    for row in sorted(rows.select(args.rows, args.size), key=lambda row: (row.name not in HOT, row.time_limit)):
        try:
            found.append(device_time(row, args.size, args.device))
        except Exception as error:  # the others are still worth having
            found.append({"name": row.name, "error": timing.describe(error)})
        timing.release(args.device)
        print(text(found[-1]), flush=True)
        if args.output:
            write(args.output, json.dumps(found, indent=1) + "\n")
    return 0


def text(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['name']}: {result['error']}"
    lines = [f"{result['name']}: busy {result['busy_ms']:.3f} of {result.get('span_ms', 0):.3f} ms"]
    for record in result["kernels"]:
        figures = " ".join(f"{record[name]:9.4f}" for name in ("ms", "longest_ms", "last_ms"))
        lines.append(f"  {record['launches']:5d} {figures}  {record['kernel'][:110]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
