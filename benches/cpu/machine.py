"""What the machine is, what it can do, and how much memory it has."""

import os
import re
import statistics
from pathlib import Path

import torch

import reidops
from benches import timing
from benches.cpu.contestant import CPU
from benches.cpu.gemm import products
from benches.inputs import normal
from reidops.__main__ import cpu_name, library_version, report

THREADS = 2


def slug() -> str:
    """The machine's name in results/: processor, cores and the instructions that our kernels use."""
    return slug_of(cpu_name(), os.cpu_count() or 1, reidops.build_info()["simd"])


def slug_of(cpu: str, cores: int, simd: str) -> str:
    plain = re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*", " ", cpu.lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{plain} {cores} cores {simd}").strip("-")


def facts() -> dict[str, object]:
    """What `python -m reidops` says, and the peers' versions."""
    versions = {name: library_version(name) for name in ("faiss", "pytorch_metric_learning", "torchmetrics")}
    return {**report(), **versions, "cores": os.cpu_count(), "memory_gb": memory_gb("MemTotal")}


def memory_gb(field: str = "MemAvailable") -> float:
    """A line of /proc/meminfo; infinity where there is none."""
    path = Path("/proc/meminfo")
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found.group(1)) * 1024 / 1e9 if found else float("inf")


def ceilings(side: int = 4096, numbers: int = 1 << 26) -> dict[str, float]:
    """copy_gb_s counts bytes read and bytes written; the others are square products of random numbers."""
    source = normal(numbers, device=CPU)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source))
    x, y = (normal(side, side, device=CPU, seed=seed) for seed in range(2))
    flops = 2.0 * side**3
    found = {"copy_gb_s": 2 * source.nbytes / copy / 1e6}
    for name, peer in products(x, y).items():
        done = flops * peer.share / median_ms(lambda peer=peer: peer.run(*peer.inputs[0])) / 1e6
        found[name.partition(", ")[2]] = done
    found["fp32_gflops"] = max(value for name, value in found.items() if name != "copy_gb_s")
    x, y = x.bfloat16(), y.bfloat16()
    product = torch.empty_like(x)
    found["bf16_gflops"] = flops / median_ms(lambda: torch.mm(x, y.T, out=product)) / 1e6
    return found


def median_ms(run, calls: int = 5) -> float:
    run()
    return statistics.median(timing.time_call(run, (), CPU) for _ in range(calls))
