"""What the machine can do, measured: copies within memory, matrix products on random data, launches."""

import statistics

import torch

from benches import timing
from benches.inputs import normal

PRODUCTS = {"bf16": ("medium", torch.bfloat16), "tf32": ("high", torch.float32), "fp32": ("highest", torch.float32)}


def measure(device: torch.device, size: str = "full") -> dict[str, float]:
    """copy_tb_s counts bytes read and bytes written; *_tflops are of a square product; launch_us of a tiny kernel."""
    on_gpu = device.type == "cuda"
    numbers, side = {"full": (1 << 30, 8192), "small": (1 << 16, 64)}[size]
    source = normal(numbers, device=device)
    target = torch.empty_like(source)
    found = {"copy_tb_s": 2 * source.nbytes / _ms(target.copy_, (source,), device) / 1e9}
    del source, target
    for name, (precision, dtype) in PRODUCTS.items():
        x, y = (normal(side, side, device=device, dtype=dtype, seed=seed) for seed in range(2))
        product = torch.empty_like(x)
        with timing.matmul_precision(precision):
            ms = _ms(lambda x, y, out: torch.mm(x, y.T, out=out), (x, y, product), device)
        found[f"{name}_tflops"] = 2 * side**3 / ms / 1e9
    if on_gpu:
        found["launch_us"] = 1e3 * timing.graph_time(lambda values: values.add_(1), [(torch.ones(32, device=device),)])
    timing.release(device)
    return found


def _ms(run, inputs: tuple, device: torch.device) -> float:
    for _ in range(3):
        timing.time_call(run, inputs, device)
    return statistics.median(timing.time_call(run, inputs, device) for _ in range(12))
