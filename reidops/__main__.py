"""python -m reidops [--json]: prints what a bug report needs."""

import argparse
import importlib
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import reidops


def report() -> dict[str, Any]:
    """The build, the machine and the libraries, in the order of printing."""
    build = reidops.build_info()
    return {
        "reidops": build["version"],
        "built with torch": build["torch"],
        "wants torch": f"{build['torch_target']} or newer",
        "built with CUDA": build["cuda"],
        "CUDA archs": build["cuda_archs"],
        "CUDA extension": build["cuda_extension"],
        "compiler": build["compiler"],
        "SIMD": build["simd"],
        "SIMD levels": build["simd_levels"],
        "threads": build["threads"],
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "numpy": library_version("numpy"),
        "scipy": library_version("scipy"),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "CPU": cpu_name(),
        "GPU driver": driver_version(),
        "GPUs": gpus(),
    }


def library_version(name: str) -> str | None:
    """The version that would be imported, None where it is not installed."""
    try:
        return importlib.import_module(name).__version__
    except ImportError:
        return None


def cpu_name() -> str:
    """The processor's name as its maker writes it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver_version() -> str | None:
    """The NVIDIA driver's version, None where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.partition("\n")[0].strip() or None if answer.returncode == 0 else None


def gpus() -> list[str]:
    """Name, compute capability and memory of each GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]


def table(rows: dict[str, Any]) -> str:
    """Names in one column, values in another."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {_words(value)}" for name, value in rows.items())


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reidops", description="Print what a bug report needs.")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    rows = report()
    print(json.dumps(rows, indent=2, default=str) if parser.parse_args().json else table(rows))


if __name__ == "__main__":
    main()
