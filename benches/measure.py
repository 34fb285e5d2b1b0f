"""Measures rows of the table in one process and writes every figure down as soon as it is there.

    python -m benches.measure --rows dmli,knn --size full --device cuda --output runs/rows.jsonl

Lines of JSON: {"ceilings": {...}} once, {"started": name} before a row and {"row": {...}} after it, so that whoever
reads along knows where a process died. It ends by itself, with LOST, once the GPU refuses to go on after an error.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benches import ceilings, rows, timing
from benches.cases import BUILDERS, Case
from benches.timing import Contestant

LOST = 3  # exit status: another process has to go on
OURS = "reidops"

Figures = dict[str, Any]


def measure(row: rows.Row, size: str, device: torch.device, seconds: float = 0.6) -> Figures:
    """All figures of one row; what fails is noted in its place. `seconds` of timed calls for each contestant."""
    begin = time.perf_counter()
    figures: Figures = {"name": row.name, "op": row.op, "shape": row.shape_text(size), "precision": row.precision}
    with timing.matmul_precision(row.precision):
        try:
            case = BUILDERS[row.op](row.precision, device, *row.sizes[size])
            figures |= first_calls(case, device)
            figures |= race(case, device, seconds, ours="error" not in figures)
            if case.training and device.type == "cuda":
                figures |= on_device_alone(case, figures)
        except Exception as error:  # the inputs did not fit, or the GPU is lost
            figures.setdefault("error", timing.describe(error))
        case = None
        timing.release(device)
    if figures.get("ours_ms"):
        work, per_second = row.work(*row.sizes[size]), 1e3 / figures["ours_ms"]
        figures |= {"tflops": work.flops * per_second / 1e12, "tb_s": work.bytes * per_second / 1e12}
    return figures | {"seconds": time.perf_counter() - begin}


def first_calls(case: Case, device: torch.device) -> Figures:
    """Ours alone: does it run, is it right, and how much memory does it take beyond inputs and results."""
    figures: Figures = {}
    try:
        if not case.once:
            case.ours(*case.inputs[0])  # the first call of all: libraries take memory of their own and keep it
        results = []
        before = memory(device, reset=True)
        ms = timing.time_call(lambda *values: results.append(case.ours(*values)), case.inputs[0], device)
        result = results.pop()
        if device.type == "cuda":
            given = [result] if isinstance(result, torch.Tensor) else result
            figures["workspace_bytes"] = memory(device) - before - sum(tensor.nbytes for tensor in given)
        if case.once:
            figures |= {"ours_ms": ms, "ours_calls": 1}
        if case.check is not None:
            figures["checks"] = case.check(result, *case.inputs[0])
    except Exception as error:
        figures["error"] = timing.describe(error)
        timing.release(device)
    return figures


def memory(device: torch.device, reset: bool = False) -> int:
    """Most bytes of the GPU's memory that tensors have held at once; from now on, with reset."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def race(case: Case, device: torch.device, seconds: float, ours: bool) -> Figures:
    """Median times of ours, if it runs, and of the peers."""
    contestants = {OURS: Contestant(case.ours, case.inputs)} if ours and not case.once else {}
    for name, peer in case.peers.items():
        contestants[name] = Contestant(peer.run, peer.inputs or case.inputs, peer.on_host)
    results = timing.compare(contestants, device, seconds)
    figures: Figures = {"peers": {}}
    for name, result in results.items():
        if name == OURS:
            if isinstance(result, str):
                figures["error"] = result
            else:
                figures |= {f"ours_{field}": value for field, value in result._asdict().items()}
            continue
        peer = case.peers[name]
        note = {"note": peer.remark()} if peer.remark() else {}
        if isinstance(result, str):
            figures["peers"][name] = {"error": result, **note}
        else:
            scaled = {field: getattr(result, field) / peer.share for field in ("ms", "low", "high")}
            figures["peers"][name] = {**scaled, "calls": result.calls, **note}
    return figures


def on_device_alone(case: Case, figures: Figures) -> Figures:
    """Short calls again: what they give to the GPU, and the time there without what Python takes to give it."""
    added: Figures = {}
    if "error" not in figures:
        added["ours_graph_ms"] = attempt(timing.graph_time, case.ours, case.inputs, figures["ours_ms"])
    for name, peer in case.peers.items():
        if peer.capturable and "ms" in figures["peers"][name]:
            figures["peers"][name]["graph_ms"] = attempt(
                timing.graph_time, peer.run, peer.inputs or case.inputs, figures["peers"][name]["ms"] * peer.share
            )
    if "error" not in figures:  # last, as profiling may slow down what comes after it
        added["launches"] = attempt(timing.launches, case.ours, case.inputs[0])
    return added


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, or its error in one line."""
    try:
        return function(*arguments)
    except Exception as error:
        return timing.describe(error)


def lost(device: torch.device) -> bool:
    """Whether the GPU no longer works for this process, as after an access out of bounds."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="comma-separated parts of row names (default: all)")
    parser.add_argument("--size", choices=rows.SIZES, default="full")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--seconds", type=float, default=0.6, help="of timed calls for each contestant")
    parser.add_argument("--output", type=Path, help="file that lines are added to (default: print them)")
    parser.add_argument("--no-ceilings", action="store_true", help="do not measure what the machine can do")
    parser.add_argument("--call-only", action="store_true", help="call ours once for each row, for a profiler")
    args = parser.parse_args(argv)
    chosen = rows.select(args.rows, args.size)

    def write(**line: Any) -> None:
        with args.output.open("a") if args.output else open(1, "w", closefd=False) as file:
            print(json.dumps(line), file=file)

    if args.call_only:
        for row in chosen:
            with timing.matmul_precision(row.precision):
                case = BUILDERS[row.op](row.precision, args.device, *row.sizes[args.size])
                case.ours(*case.inputs[0])
        return 0
    if not args.no_ceilings:
        write(ceilings=ceilings.measure(args.device, args.size))
    for row in chosen:
        write(started=row.name)
        write(row=measure(row, args.size, args.device, args.seconds))
        if lost(args.device):
            return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
