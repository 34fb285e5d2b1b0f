"""What nvcc says of every kernel: registers, shared memory, spills. No GPU is needed.

REIDOPS_CUDA=1 REIDOPS_PTXAS=1 python setup.py build_ext --inplace --force 2>&1 | tee build.log
python -m benches.registers build.log        # writes benches/results/registers.md
"""

import argparse
import re
import subprocess
from pathlib import Path

from benches import process

OUT = Path(__file__).parent / "results" / "registers.md"
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def read(log: str) -> dict[str, dict[str, tuple[int, int, int]]]:
    """By kernel and architecture: registers, bytes of static shared memory, bytes spilled."""
    kernels, entry, spilled = {}, None, 0
    for line in log.splitlines():
        if found := ENTRY.search(line):
            entry = found.groups()
        elif found := SPILL.search(line):
            spilled = int(found[1]) + int(found[2])
        elif entry and (found := USED.search(line)):
            kernels.setdefault(entry[0], {})[entry[1]] = int(found[1]), int(found[2] or 0), spilled
            entry, spilled = None, 0
    return kernels


def names(mangled: list[str]) -> list[str]:
    """Readable names: without namespaces and parameters."""
    said = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    plain = [re.sub(r"reidops::|\(anonymous namespace\)::|c10::|void ", "", name) for name in said.splitlines()]
    return [re.sub(r"\([A-Z]\w+\)(?=\d)", "", name).split(">(")[0] + (">" if ">(" in name else "") for name in plain]


def table(kernels: dict[str, dict[str, tuple[int, int, int]]]) -> str:
    archs = sorted({arch for of_kernel in kernels.values() for arch in of_kernel})
    head = ["kernel", *(f"{arch}: registers" for arch in archs), "static shared memory", "spilled bytes"]
    rows = []
    for name, of_kernel in zip(names(list(kernels)), kernels.values(), strict=True):
        registers = [str(of_kernel[arch][0]) if arch in of_kernel else "" for arch in archs]
        shared, spilled = (max(values[i] for values in of_kernel.values()) for i in (1, 2))
        rows.append([f"`{name.split('(')[0]}`", *registers, f"{shared:,}" if shared else "", str(spilled or "")])
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *sorted(rows))]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="output of a build with REIDOPS_PTXAS=1")
    kernels = read(parser.parse_args().log.read_text())
    if not kernels:
        raise SystemExit("the log names no kernel: was it built with REIDOPS_PTXAS=1?")
    spilling = sum(values[2] > 0 for of_kernel in kernels.values() for values in of_kernel.values())
    text = "# Registers\n\nAs `nvcc -Xptxas -v` reports them; dynamic shared memory comes on top (see the kernels).\n\n"
    text += f"{len(kernels)} kernels; builds of a kernel that spill: {spilling}.\n\n{table(kernels)}\n"
    process.write(OUT, text)
    print(f"{OUT}: {len(kernels)} kernels, {spilling} spilling")


if __name__ == "__main__":
    main()
