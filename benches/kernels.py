"""What bounds a kernel, read from the GPU's counters with Nsight Compute (ncu)."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from benches import process
from benches.process import python

if TYPE_CHECKING:
    from benches.gpu_check import Check

HOT = (
    "dmli_matrix-2048-high", "dmli_matrix-128-high", "knn", "k_reciprocal-market-high", "rank_metrics-market",
    "batch_hard-64", "dmli-128", "channel_attention-288",
    "channel_attention-averages-288",
)  # fmt: skip
MOST_LAUNCHES = 4  # of a row
METRICS = (
    "gpu__time_duration.sum",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block_allocated",
    "launch__grid_size",
    "launch__block_size",
)  # these alone: whole sections took twelve passes over a launch, half a second

COLUMNS = {  # our word, and how the metric's name begins; per cent unless the word says otherwise
    "ns": ("gpu__time_duration",),
    "dram": ("gpu__dram_throughput.avg.pct_of_peak", "dram__throughput.avg.pct_of_peak"),
    "l2": ("lts__throughput.avg.pct_of_peak",),
    "sm": ("sm__throughput.avg.pct_of_peak",),
    "occupancy": ("sm__warps_active.avg.pct_of_peak",),
    "registers": ("launch__registers_per_thread",),
    "shared_bytes": ("launch__shared_mem_per_block_allocated", "launch__shared_mem_per_block"),
    "blocks": ("launch__grid_size",),
    "threads": ("launch__block_size",),
}


def profile(ncu: str, row: str, check: Check) -> list[dict[str, Any]]:
    """The longest of the first launches of our kernel that takes most of the row's time, by its template arguments.

    Which one that is, part `time` has measured; where it has not, the first launches of any kernel of ours.
    """
    name = slowest(check.results["times"], row)
    wanted = ["--kernel-name-base", "demangled", "--kernel-name", f"regex:reidops::.*{name or ''}"]
    wanted += ["--launch-count", str(MOST_LAUNCHES), "--metrics", ",".join(METRICS)]
    call = python("benches.measure", "--call-only", "--rows", row, "--size", check.args.size)
    page = ["--csv", "--page", "raw", "--print-units", "base"]
    outcome = process.run(
        [ncu, "--clock-control", "none", *wanted, *page, *call], check.log("profile"), check.left("profile")
    )
    found = records(outcome.output)
    if not found:
        raise RuntimeError(f"{'timed out' if outcome.code is None else 'no report'}: {outcome.tail(3)}")
    return [{"row": row, **record} for record in longest(found)]


def slowest(times: list[dict[str, Any]], row: str) -> str | None:
    """Our kernel that takes most of the row's time, without template arguments; None where that was not measured."""
    found = [kernel for one in times if one["name"] == row for kernel in one.get("kernels", []) if kernel["ours"]]
    total: dict[str, float] = {}
    for kernel in found:
        name = kernel["kernel"].partition("<")[0]
        total[name] = total.get(name, 0.0) + kernel["ms"]
    return max(total, key=total.__getitem__, default=None)


def records(page: str) -> list[dict[str, Any]]:
    """The launches of ncu's raw page: a line of names, a line of units, a line for each launch."""
    lines = [line for line in page.splitlines() if line.startswith('"')]
    found = []
    for launch in list(csv.DictReader(lines))[1:]:
        record: dict[str, Any] = {"kernel": plain_name(launch["Kernel Name"])}
        metrics = {name: number(text) for name, text in launch.items() if name and text}
        for word, starts in COLUMNS.items():
            named = [metrics[name] for start in starts for name in metrics if name.startswith(start)]
            record[word] = named[0] if named else None
        tensor = [metrics[name] for name in metrics if "pipe_tensor" in name and "pct_of_peak" in name]
        record["tensor"] = max(filter(None, tensor), default=0.0)
        record["bound"] = bound(record)
        found.append(record)
    return found


def plain_name(name: str) -> str:
    """The kernel and its template arguments, without namespaces, result and parameters."""
    for noise in ("void ", "reidops::", "(anonymous namespace)::", "<unnamed>::"):
        name = name.replace(noise, "")
    depth = 0
    for place in reversed(range(len(name))) if name.endswith(")") else ():
        depth += (name[place] == ")") - (name[place] == "(")
        if depth == 0:
            return name[:place]
    return name


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def bound(record: dict[str, Any]) -> str:
    """The part of the GPU that is busiest; latency, where none is half busy."""
    busy = {name: record[name] or 0.0 for name in ("dram", "l2", "tensor", "sm")}
    name = max(busy, key=busy.__getitem__)  # of equals the first: more of a reason than "sm", which holds the others
    return f"{name} {busy[name]:.0f} %" if busy[name] >= 50 else f"latency ({name} {busy[name]:.0f} %)"


def longest(launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each kernel its longest launch, the slowest kernel first."""
    by_name: dict[str, dict[str, Any]] = {}
    for launch in sorted(launches, key=lambda launch: launch["ns"] or 0.0):
        by_name[launch["kernel"]] = launch
    return list(by_name.values())[::-1]
