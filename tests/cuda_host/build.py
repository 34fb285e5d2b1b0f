"""Compiles csrc/cuda for the CPU: `python tests/cuda_host/build.py [plain|races|asan]` builds the library of a flavour.

plain   every kernel as the scheduler of machine.cpp runs it
races   every access of memory is told to races.cpp, which knows CUDA's barriers
asan    AddressSanitizer and UndefinedBehaviorSanitizer; their runtime has to be loaded before Python (LD_PRELOAD)

Only what has changed is compiled again. A source that does not compile is left out, so that the others can be tested
meanwhile; `Built.errors` has what the compiler said of it.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZERS = "address,alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow"
FLAVOURS = {
    "plain": [],
    "races": ["-fsanitize=thread", "-DMACHINE_RACES"],  # only the compiler's half of ThreadSanitizer: races.cpp is ours
    "asan": [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-DMACHINE_ASAN"],
}
MACHINE = ("machine.cpp", "fibers.cpp", "races.cpp")  # never instrumented


@dataclass
class Built:
    library: Path
    errors: dict[str, str] = field(default_factory=dict)  # by the source's name


class NoSanitizer(RuntimeError):
    """AddressSanitizer cannot be used on this machine."""


@cache
def compiler() -> str | None:
    """GCC (the environment variable CXX, or g++), or None where it is not."""
    found = shutil.which(os.environ.get("CXX") or "g++")
    if found is None:
        return None
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return found if "Free Software Foundation" in version else None


def namespace(flavour: str) -> str:
    """Where the operators are registered: torch.ops.<namespace>."""
    return "reidops_host" if flavour == "plain" else f"reidops_host_{flavour}"


@cache
def sanitized_python() -> tuple[list[str], dict[str, str]]:
    """A command, the start of one, and its environment in which Python can load the flavour `asan`.

    NoSanitizer says why there is none here.
    """
    libraries = []
    for name in ("libasan.so", "libstdc++.so.6"):  # the second, so that exceptions are there when the first starts
        found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(found) or not os.path.exists(found):
            raise NoSanitizer(f"{compiler()} has no {name}")
        libraries.append(os.path.realpath(found))
    environment = dict(os.environ, LD_PRELOAD=" ".join(libraries), PYTHONMALLOC="malloc")
    environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0:exitcode=99"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1:exitcode=99"
    steady = ["setarch", "-R"]  # the addresses of some systems are too random for older runtimes
    if shutil.which("setarch") is None or subprocess.run([*steady, "true"], capture_output=True).returncode != 0:
        steady = []
    command = [*steady, sys.executable]
    for _ in range(3):
        trial = [*command, "-c", "import ctypes; ctypes.CDLL(None).__asan_init; print('started')"]
        run = subprocess.run(trial, env=environment, capture_output=True, text=True, timeout=300)
        if run.stdout.strip() != "started":
            said = (run.stderr.strip() or f"it ended with {run.returncode}").splitlines()[0]
            raise NoSanitizer(f"Python does not start with AddressSanitizer's runtime: {said}")
    return command, environment


def flags(flavour: str) -> list[str]:
    import torch

    include = Path(torch.__file__).parent / "include"
    return [
        "-std=c++17",
        "-O1",
        "-g1",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-fno-extern-tls-init",
        "-fno-omit-frame-pointer",
        "-w",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DUSE_CUDA",
        f"-DMACHINE_NAMESPACE={namespace(flavour)}",
        f"-I{HERE / 'include'}",
        f"-isystem{include}",
        f"-isystem{include / 'torch/csrc/api/include'}",
    ]


def build(flavour: str = "plain", sources: list[Path] | None = None, name: str = "host") -> Built:
    """Builds lib<name>.so of the given sources (csrc's, if none are given), in build/cuda_host/<flavour>."""
    import torch

    own = sources is None
    sources = sources or [HERE / "blas.cpp", ROOT / "csrc/ops.cpp", *sorted(ROOT.glob("csrc/cuda/*.cu"))]
    sources = [path for path in sources if path.name != "build_info.cu"]
    common, sanitizer = flags(flavour), FLAVOURS[flavour]
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((version, common, torch.__version__)).encode()).hexdigest()[:10]
    folder = ROOT / "build/cuda_host" / f"{flavour}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        header = folder / "shim.h"
        if not header.exists():
            header.write_text(f'#include "{HERE / "shim.h"}"\n')
        machine = [HERE / file for file in MACHINE if file != "races.cpp" or flavour == "races"]
        macros = [flag for flag in sanitizer if flag.startswith("-D")]
        done = {path: pool.submit(_compile, path, folder, [*common, *macros, "-O3"]) for path in machine}
        error = _compile(header, folder, [*common, *sanitizer, "-x", "c++-header"], folder / "shim.h.gch")
        if error:
            raise RuntimeError(f"{HERE / 'shim.h'} does not compile:\n{error}")
        forced = ["-include", str(header), "-include", str(HERE / "limits.h")] if own else []
        for path in sources:
            done[path] = pool.submit(_compile, path, folder, [*common, *sanitizer, *forced, "-x", "c++"])
        errors = {path.name: future.result() for path, future in done.items() if future.result()}
        if broken := [path.name for path in machine if path.name in errors]:
            raise RuntimeError(f"{broken[0]} does not compile:\n{errors[broken[0]]}")
        objects = [_object(path, folder) for path in done if path.name not in errors]
        return Built(_link(objects, folder / f"lib{name}.so", flavour, bool(errors)), errors)


def _object(source: Path, folder: Path) -> Path:
    return folder / f"{source.name}.o"


def _state(paths: list[str]) -> dict[str, list[int]]:
    return {path: [Path(path).stat().st_mtime_ns, Path(path).stat().st_size] for path in paths if os.path.exists(path)}


def _compile(source: Path, folder: Path, arguments: list[str], to: Path | None = None) -> str:
    """Compiles one file unless nothing it was made from has changed; returns the compiler's errors."""
    to = to or _object(source, folder)
    record, needed = to.with_name(to.name + ".json"), to.with_name(to.name + ".d")
    command = [compiler(), *arguments, "-MD", "-MF", str(needed), "-c", str(source), "-o", str(to)]
    if record.exists() and to.exists():
        last = json.loads(record.read_text())
        if last["command"] == command and last["state"] == _state(last["state"]):
            return ""
    record.unlink(missing_ok=True)
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        return run.stderr or f"{command[0]} failed"
    files = needed.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    files = sorted(
        {str(Path(path)) for path in files if "/torch/include/" not in path and not path.startswith("/usr/")}
    )
    record.write_text(json.dumps({"command": command, "state": _state(files)}))
    return ""


def _link(objects: list[Path], to: Path, flavour: str, incomplete: bool) -> Path:
    """Links a library named after its contents: a process that has loaded an older one can load it too.

    Where a source is missing, what others call of it is an error when they call it.
    """
    import torch

    made_of = hashlib.sha256(repr([(str(path), path.stat().st_mtime_ns) for path in objects]).encode()).hexdigest()[:10]
    to = to.with_name(f"{to.stem}-{made_of}.so")
    if to.exists():
        return to
    others = sorted(to.parent.glob(f"{to.stem.rsplit('-', 1)[0]}-*.so"), key=lambda path: path.stat().st_mtime)
    for old in others[:-3]:  # another process may be about to load the last ones
        old.unlink()
    folder = Path(torch.__file__).parent / "lib"
    sanitizer = [f"-fsanitize={SANITIZERS}"] if flavour == "asan" else []
    command = [compiler(), "-shared", "-Wl,-Bsymbolic,-z,defs,--no-demangle", *sanitizer, *map(str, objects)]
    command += [f"-L{folder}", "-Wl,--as-needed", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder}", "-o", str(to)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0 and incomplete:
        missing = set(re.findall(r"undefined reference to [`'](_ZN7reidops\w+)'", run.stderr))
        command += [f"-Wl,--defsym={symbol}=machine_call_of_what_is_missing" for symbol in sorted(missing)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{to.name} cannot be linked:\n{run.stderr}")
    return to


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["plain"]:
        built = build(wanted)
        for source, message in built.errors.items():
            print(f"{source} does not compile:\n{message}", file=sys.stderr)
        print(built.library)
        if built.errors:
            raise SystemExit(1)
