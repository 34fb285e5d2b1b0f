"""Measures a row: ours and the peers in turn, so that a drifting clock favours none."""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benches import timing
from benches.cases import Case, Peer
from benches.cpu import alone, gemm, memory
from benches.cpu.contestant import Contestant, mode
from benches.cpu.machine import memory_gb
from benches.cpu.rows import Row

LEAST, MOST = 5, 60  # samples of a contestant
LEAST_LONG = 3  # of one whose calls take seconds
SLOW_MS = 8_000.0  # a peer's call that takes longer is not repeated; then warming up is no part of it worth naming
QUICK_MS = 2_000.0  # the same in a quick run

Figures = dict[str, Any]
Rounds = Callable[[Callable[[], Any], Callable[[], None], int], list[float]]  # (run, before each, how many) -> ms


def in_turn(run: Callable[[], Any], before: Callable[[], None], count: int) -> list[float]:
    """Milliseconds of `count` calls, each after a call of `before`."""
    times = []
    for _ in range(count):
        before()
        begin = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def pedantic(benchmark: Any) -> Rounds:
    """The same by pytest-benchmark, whose records have it too."""

    def rounds(run: Callable[[], Any], before: Callable[[], None], count: int) -> list[float]:
        benchmark.pedantic(run, setup=before, rounds=count)
        return [1e3 * seconds for seconds in benchmark.stats.stats.data]

    return rounds


def measure(
    row: Row, size: str = "full", seconds: float = 2.0, rounds: Rounds = in_turn, quick: bool = False
) -> Figures:
    """All figures of one row but the memory; what fails is noted in its place. `seconds` of samples a contestant."""
    begin = time.perf_counter()
    figures: Figures = {"name": row.name, "op": row.op, "shape": row.shape_text(size), "precision": row.precision}
    with timing.matmul_precision(row.precision):
        case = row.case(size)
        with mode(case), timing.collected_garbage():
            figures |= once(case, rounds) if row.once else race(case, seconds, rounds, QUICK_MS if quick else SLOW_MS)
        result = figures.pop("result")
        for name, peer in case.peers.items():
            if peer.alone_gb:
                figures["peers"][name] = by_itself(row, size, name, peer, result, skip=quick)
        figures["checks"] = {**case.check(result, *case.inputs[0]), **agreement(figures["peers"])}
    figures["peers"] = gemm.with_fastest(figures["peers"])
    return figures | {"seconds": time.perf_counter() - begin}


def race(case: Case, seconds: float, rounds: Rounds, slow_ms: float) -> Figures:
    """Times of ours and of the peers; each round first a sample of every peer that has not had enough, then ours."""
    ours = Contestant(case.ours, case.inputs[0])
    rivals, figures = contestants(case)
    turn = 0

    def before() -> None:
        nonlocal turn
        turn += 1
        for rival in list(rivals.values())[:: 1 if turn % 2 else -1]:
            if rival.ms > slow_ms:
                rival.samples = [rival.ms]
            elif len(rival.samples) < wanted(rival, seconds):
                rival.take()
        ours.warm()

    ours.samples = rounds(ours.sample, before, wanted(ours, seconds))
    figures["result"] = ours.result
    figures |= {f"ours_{field}": value for field, value in ours.summary()._asdict().items()}
    for name, rival in rivals.items():
        peer, done = case.peers[name], rival.summary()
        scaled = {field: getattr(done, field) / peer.share for field in ("ms", "low", "high")}
        figures["peers"][name] = {**scaled, "calls": done.calls, **note(peer)}
    return figures


def wanted(contestant: Contestant, seconds: float) -> int:
    """How many samples make up that time."""
    least = LEAST_LONG if contestant.ms > 1e3 * seconds else LEAST
    return max(least, min(MOST, math.ceil(1e3 * seconds / (contestant.ms * contestant.calls))))


def once(case: Case, rounds: Rounds) -> Figures:
    """One call of ours is long enough, and its memory is measured with it; then the peers."""
    found = []
    (ms,) = rounds(lambda: found.append(memory.peak(lambda: case.ours(*case.inputs[0]))), lambda: None, 1)
    ((result, peak),) = found
    rivals, figures = contestants(case)
    for name, rival in rivals.items():
        for _ in range(LEAST_LONG):
            rival.take()
        done, peer = rival.summary(), case.peers[name]
        figures["peers"][name] = {"ms": done.ms / peer.share, "calls": done.calls, **note(peer)}
    figures |= {"result": result, "ours_ms": ms, "ours_low": ms, "ours_high": ms, "ours_calls": 1}
    return figures | {"workspace_bytes": memory.beyond(peak, result)}


def contestants(case: Case) -> tuple[dict[str, Contestant], Figures]:
    """The peers that can be called, and figures that say which cannot."""
    rivals, figures = {}, {"peers": {}}
    for name, peer in case.peers.items():
        figures["peers"][name] = note(peer)
        if not peer.alone_gb:
            try:
                rivals[name] = Contestant(peer.run, (peer.inputs or case.inputs)[0])
                rivals[name].result = None  # what it holds is ours to use
            except Exception as error:
                figures["peers"][name] |= {"error": absence(error)}
    return rivals, figures


def absence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{str(error.name).partition('.')[0]} is not installed"
    return timing.describe(error)


def note(peer: Peer) -> Figures:
    return {"note": peer.remark()} if peer.remark() else {}


def by_itself(row: Row, size: str, name: str, peer: Peer, result: Any, skip: bool) -> Figures:
    """A peer that needs so much memory that it runs once, in a process of its own, its result beside ours."""
    if skip:
        return {"error": "left out of a quick run"}
    if memory_gb() < peer.alone_gb * 1.2:
        return {"error": f"needs {peer.alone_gb:.0f} GB of memory, {memory_gb():.0f} are free"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.pt"
        found = alone.start(row.name, "--size", size, "--contestant", name, "--save", str(path))
        if "error" in found:
            return found
        theirs = torch.load(path)[0]
    difference = (memory.tensors(result)[0] - theirs).abs()
    return {
        "ms": found["ms"],
        "calls": 1,
        "workspace_bytes": found["workspace_bytes"],
        "differing_by_0.01": (difference > 1e-2).double().mean().item(),
        "note": ", ".join(filter(None, ["once, in a process of its own", peer.remark()])),
    }


def agreement(peers: Figures) -> Figures:
    """Whether whole results of peers are ours, but for ties that float16 decides otherwise."""
    shares = [peer["differing_by_0.01"] for peer in peers.values() if "differing_by_0.01" in peer]
    return {"ok": False, "differing_from_published": max(shares)} if shares and max(shares) > 0.02 else {}
