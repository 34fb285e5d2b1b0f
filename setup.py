"""Builds reidops: `_C` (operator schemas and CPU kernels) and, where nvcc and a CUDA build of torch are, `_C_cuda`.

Build variables
    REIDOPS_CUDA=0|1      leave the CUDA kernels out, or insist on them (default: build them when it can be done)
    TORCH_CUDA_ARCH_LIST  GPU architectures (default: those of the GPUs present, else "8.0;9.0+PTX")
    CUDA_HOME             CUDA toolkit (default: found through nvcc)
    MAX_JOBS              files compiled at once

Both modules use LibTorch's stable ABI of torch 2.10: one build serves every later torch (of the same CUDA major).
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = (2, 10)
DEFAULT_ARCHS = "8.0;9.0+PTX"


def cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, or the folder above the real nvcc's bin (the nvcc on PATH may be a wrapper)."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return Path(os.environ[name])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        default = Path("/usr/local/cuda")
        return default if (default / "bin" / "nvcc").exists() else None
    try:
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    top = re.search(r"^#\$ TOP=(.*)$", plan.stderr + plan.stdout, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parent.parent


HOME = cuda_home()
if HOME is not None:
    os.environ["CUDA_HOME"] = str(HOME)  # read by torch.utils.cpp_extension when it is imported

import torch  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402


def cuda_obstacle() -> str | None:
    """Why the CUDA kernels are not built, or None if they are."""
    if os.environ.get("REIDOPS_CUDA", "") not in ("", "0", "1"):
        raise SystemExit(f"reidops: REIDOPS_CUDA should be 0 or 1, got {os.environ['REIDOPS_CUDA']}")
    if os.environ.get("REIDOPS_CUDA") == "0":
        return "REIDOPS_CUDA=0"
    if not sorted(ROOT.glob("csrc/cuda/*.cu")):
        return "there are no CUDA sources"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if HOME is None or not (HOME / "bin" / "nvcc").exists():
        return "nvcc was not found (set CUDA_HOME)"
    try:
        release = subprocess.run([HOME / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        return f"nvcc cannot be run: {error}"
    version = re.search(r"release (\d+)\.(\d+)", release)
    if version is None or version.group(1) != torch.version.cuda.split(".")[0]:
        found = "of an unknown version" if version is None else f"{version.group(1)}.{version.group(2)}"
        return f"nvcc is {found}, torch {torch.__version__} was built with CUDA {torch.version.cuda}"
    return None


def version_macro() -> str:
    return f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def cpu_flags() -> list[str]:
    flags = [
        "-O3",
        "-g0",
        "-std=c++17",
        "-fvisibility=hidden",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
    ]
    return [*flags, "-Wall", "-Wextra", "-Wno-unused-parameter", f"-DTORCH_TARGET_VERSION={version_macro()}"]


def cpu_extension():
    return cpp_extension.CppExtension(
        "reidops._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        extra_compile_args={"cxx": cpu_flags()},
        depends=sources("csrc/**/*.h"),
    )


def cuda_archs() -> str:
    """What TORCH_CUDA_ARCH_LIST asks for, else the GPUs present, else the default."""
    present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(f"{a}.{b}" for a, b in sorted(present)) or DEFAULT_ARCHS


def cuda_extension():
    ptxas = "-v" if os.environ.get("REIDOPS_PTXAS") == "1" else "-warn-spills"
    nvcc = [
        "-O3",
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "--extended-lambda",
        "-lineinfo",
        "-Xcompiler=-fvisibility=hidden",
        f"-Xptxas={ptxas}",
    ]
    macros = [f"-DTORCH_TARGET_VERSION={version_macro()}", "-DUSE_CUDA"]
    return cpp_extension.CUDAExtension(
        "reidops._C_cuda",
        [
            str(p.relative_to(ROOT))
            for p in [*sorted(ROOT.glob("csrc/cuda/*.cu")), *sorted(ROOT.glob("csrc/cuda/*.cpp"))]
        ],
        extra_compile_args={"cxx": [*cpu_flags(), "-DUSE_CUDA"], "nvcc": [*nvcc, *macros]},
        depends=sources("csrc/**/*.h", "csrc/**/*.cuh"),
    )


def write_build_record(obstacle: str | None) -> None:
    """reidops/_build.py: what the extension was built with, for error messages and `python -m reidops`."""
    record = {
        "TORCH_VERSION": torch.__version__,
        "TORCH_TARGET": ".".join(map(str, TORCH_TARGET)),
        "PYTHON_VERSION": platform.python_version(),
        "CUDA_VERSION": None if obstacle else torch.version.cuda,
        "CUDA_ARCHS": None if obstacle else os.environ["TORCH_CUDA_ARCH_LIST"],
        "CUDA_OBSTACLE": obstacle,
    }
    lines = ['"""Written by setup.py: what the extension was built with."""', ""]
    lines += [f"{name} = {value!r}" for name, value in record.items()]
    path = ROOT / "reidops" / "_build.py"
    fresh = path.with_suffix(".tmp")
    fresh.write_text("\n".join(lines) + "\n")
    os.replace(fresh, path)


class BuildExtension(cpp_extension.BuildExtension):
    def run(self):
        write_build_record(OBSTACLE)  # before the files are copied, so that the wheel has it
        super().run()


def building() -> bool:
    return not {"egg_info", "dist_info", "sdist", "clean", "--version", "--name"} & set(sys.argv)


OBSTACLE = cuda_obstacle()
if OBSTACLE is None:
    os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_archs()  # read by torch.utils.cpp_extension
if building():
    if OBSTACLE and os.environ.get("REIDOPS_CUDA") == "1":
        raise SystemExit(f"reidops: REIDOPS_CUDA=1, but the CUDA kernels cannot be built: {OBSTACLE}")
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST")
    plan = f"without CUDA kernels: {OBSTACLE}" if OBSTACLE else f"and the CUDA kernels for {archs}"
    print(f"reidops: building the CPU library {plan}", flush=True)
    write_build_record(OBSTACLE)

setup(
    ext_modules=[cpu_extension()] + ([] if OBSTACLE else [cuda_extension()]),
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None or None)},
)
