"""The parts of gpu_check. Each is given the run and returns its result: a status, why it is not "passed", figures."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches import kernels, process, rows
from benches.process import Outcome, python

if TYPE_CHECKING:
    from benches.gpu_check import Check

Result = dict[str, Any]


def judged(outcome: Outcome) -> Result:
    if outcome.code is None:
        return {"status": "timed out", "why": outcome.tail()}
    if outcome.code != 0:
        return {"status": "failed", "why": f"exit status {outcome.code}: {outcome.tail()}"}
    return {"status": "passed"}


# ---------------------------------------------------------------------------------------------- build


def build(check: Check) -> Result:
    """In place, so that the tests run from the checkout; for the GPU that is here."""
    if check.args.device == "cpu":
        variables = {"REIDOPS_CUDA": "0"}
    else:
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or architecture(check)
        variables = {"REIDOPS_CUDA": "1", "REIDOPS_PTXAS": "1", "TORCH_CUDA_ARCH_LIST": archs}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    outcome = process.run(command, check.log("build"), check.left("build"), variables)
    return {**judged(outcome), "variables": variables, "spilling": spilling(outcome.output)}


def architecture(check: Check) -> str:
    """The GPU's, on Hopper with the instructions that are Hopper's alone."""
    ask = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
    outcome = process.run([sys.executable, "-c", ask], check.log("build"), check.left("build"))
    if outcome.code != 0:
        raise RuntimeError(f"torch finds no GPU: {outcome.tail(1)}")
    return outcome.output.split()[-1].replace("9.0", "9.0a")


def spilling(output: str) -> list[str]:
    """Kernels that keep registers in memory, from what ptxas says of each."""
    function, found = "", []
    for line in output.splitlines():
        if "Function properties for" in line:
            function = line.rsplit(" ", 1)[-1]
        elif re.search(r"[1-9]\d* bytes spill", line):
            found.append(f"{function}: {line.strip()}")
    return sorted(set(found))


def machine(check: Check) -> Result:
    """What `python -m reidops` says of the build, the libraries, the processor and the GPU."""
    outcome = process.run(python("reidops", "--json"), check.scratch / "machine.log", 60)
    return json.loads(outcome.output) if outcome.code == 0 else {"error": outcome.tail(3)}


# ---------------------------------------------------------------------------------------------- tests


def tests(check: Check) -> Result:
    """Every file in a process of its own: a hang or an access out of bounds costs that file, not the others."""
    files = [
        file for path in check.args.tests for file in ([path] if path.is_file() else sorted(path.glob("test_*.py")))
    ]
    options = ["-v", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-k", check.args.device]
    if importlib.util.find_spec("pytest_timeout"):
        options.append("--timeout=60")
    workers = max(min(8, (os.cpu_count() or 2) // 2), 2)

    def one(file: Path) -> Outcome:
        seconds = check.left("tests") - 1
        if seconds <= 0:
            return Outcome(None, 0.0, "no time left")
        return process.run(
            python("pytest", file, *options), check.scratch / f"{file.stem}.log", seconds, {"OMP_NUM_THREADS": "1"}
        )

    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(one, files))
    with check.log("tests").open("w") as log:
        log.writelines(f"\n{'=' * 20} {file.name}\n{run.output}" for file, run in zip(files, outcomes, strict=True))
    counts: dict[str, int] = {}
    failures, unfinished = [], {}
    for file, run in zip(files, outcomes, strict=True):
        verdicts = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", run.output, re.MULTILINE)
        for _, verdict in set(verdicts):
            counts[verdict.lower()] = counts.get(verdict.lower(), 0) + 1
        failures += re.findall(r"^(?:FAILED|ERROR) (\S+::.+)$", run.output, re.MULTILINE)
        if run.code not in (0, 1, 5):  # 1: tests failed; 5: the file has none for this device
            ended = "timed out" if run.code is None else f"exit status {run.code}"
            errors = [line for line in run.output.splitlines() if line.startswith("E  ")]
            unfinished[file.name] = f"{ended}: {errors[-1][2:].strip() if errors else run.tail(3)}"
    passed = counts.get("passed", 0) > 0 and not failures and not unfinished
    why = "; ".join([f"{len(failures)} failed", *(f"{name} {what}" for name, what in unfinished.items())])
    return {
        "status": "passed" if passed else "timed out" if "timed out" in why else "failed",
        **({} if passed else {"why": why}),
        "counts": counts,
        "failures": failures[:100],
        "unfinished": unfinished,
    }


# ---------------------------------------------------------------------------------------------- compute-sanitizer


SANITIZED = ("passed", "incomplete", "timed out", "failed")  # the best first


def memcheck(check: Check) -> Result:
    return sanitize(check, "memcheck")


def racecheck(check: Check) -> Result:
    return sanitize(check, "racecheck")


def sanitize(check: Check, tool: str) -> Result:
    """Every operator at small sizes under compute-sanitizer, its own kernels only; without a GPU, the calls alone.

    Where the process dies in a call, another goes on after it.
    """
    command = python("benches.gpu_sanitize", "--device", check.args.device)
    if check.args.device == "cuda":
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(sanitizer).exists():
            return {"status": "failed", "why": "compute-sanitizer was not found"}
        command = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--report-api-errors",
            "no",
            "--kernel-name",
            "kns=reidops",
            *command,
        ]
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    output, checked, not_checked, first = "", 0, [], 0
    result: Result = {"status": "passed"}
    while True:
        outcome = process.run([*command, "--first", str(first)], check.log(tool), check.left(tool), variables)
        output += outcome.output
        calls = re.findall(r"^call (\d+): (.+) \(.+ s\)$", outcome.output, re.MULTILINE)
        ended = re.search(r"^\d+ called, ", outcome.output, re.MULTILINE) is not None
        died = outcome.code is not None and not ended and bool(calls)
        checked += len(calls) - (not ended and bool(calls))
        one = judged(outcome)
        if died and "Internal Sanitizer Error" in outcome.output:  # the tool's death, not the kernel's
            one = {"status": "incomplete"}
        result = max(result, one, key=lambda found: SANITIZED.index(found["status"]))
        if not died:
            break
        not_checked.append(calls[-1][1])
        first = int(calls[-1][0]) + 1
    lines = output.splitlines()
    findings = [
        line.removeprefix("========= ")
        for line in lines
        if re.match(r"=+ (Invalid|Error(?!: process)|Warning|Race|Potential|Misaligned)", line)
    ]
    if result["status"] == "incomplete":
        status = "failed" if findings or not checked else "incomplete"
        result = {"status": status, "why": f"not checked: {'; '.join(not_checked)}"}
    return {
        **result,
        "summary": [line for line in lines if "SUMMARY" in line] + lines[-1:],
        "findings": findings[:20],
        "checked": checked,
        "not checked": not_checked,
        "without a kernel": sum(line.startswith("no kernel") for line in lines),
        "failed calls": [line for line in lines if line.startswith("failed: ")][:20],
    }


# ---------------------------------------------------------------------------------------------- bench


class Rows:
    """Reads what benches.measure writes, row by row, while it writes."""

    def __init__(self, check: Check):
        self.check = check
        self.path = check.scratch / "rows.jsonl"
        self.path.touch()
        self.taken = 0
        self.current: rows.Row | None = None
        self.since = 0.0
        self.waiting = {row.name: row for row in check.rows}

    def read(self) -> None:
        lines = self.path.read_text().split("\n")[:-1]  # the last is empty, or not yet whole
        for line in map(json.loads, lines[self.taken :]):
            if "ceilings" in line:
                self.check.results["ceilings"] = line["ceilings"]
            if "started" in line:
                self.current, self.since = self.waiting[line["started"]], time.monotonic()
            if "row" in line:
                self.finish(self.waiting[line["row"]["name"]], line["row"])
        self.taken = len(lines)

    def too_slow(self) -> bool:
        self.read()
        return self.current is not None and time.monotonic() - self.since > self.current.time_limit

    def ended(self, run: Outcome) -> str:
        """Why the current row has no figures."""
        if run.code is not None:
            return f"its process ended, exit status {run.code}: {run.tail(3)}"
        return "took too long" if self.too_slow() else "no time left"

    def finish(self, row: rows.Row, figures: Result) -> None:
        """Adds the limit and the bars' verdicts, and has all results written."""
        results = self.check.results
        results["rows"].append(rows.judged(row, self.check.args.size, figures, results["ceilings"]))
        del self.waiting[row.name]
        self.current = None
        self.check.write()


def bench(check: Check) -> Result:
    """Rows in one process after another: where one dies, or takes too long, the next goes on after that row."""
    progress = Rows(check)
    while progress.waiting and check.left("bench") > 1:
        before = len(progress.waiting)
        command = python(
            "benches.measure", "--rows", ",".join(progress.waiting), "--size", check.args.size, "--device",
            check.args.device, "--seconds", str(check.args.seconds), "--output", progress.path,
        )  # fmt: skip
        if check.results["ceilings"]:
            command.append("--no-ceilings")
        run = process.run(command, check.log("bench"), check.left("bench"), stop=progress.too_slow)
        progress.read()
        if progress.current is not None:
            progress.finish(progress.current, {"name": progress.current.name, "error": progress.ended(run)})
        elif len(progress.waiting) == before:
            break
    missing = list(progress.waiting)
    for row in list(progress.waiting.values()):
        progress.finish(row, {"name": row.name, "error": "not started"})
    found = check.results["rows"]
    failed = [row["name"] for row in found if "error" in row or not row.get("checks", {}).get("ok", True)]
    why = {"why": f"without figures or wrong: {', '.join(failed)}"} if failed else {}
    if missing:
        why = {"why": f"{len(missing)} rows were not started: {run.tail() if run.code else 'no time left'}"}
    return {
        "status": "failed" if failed else "passed",
        **why,
        "met": sum(row["met"] is True for row in found),
        "rows": len(found),
    }


def time_on_gpu(check: Check) -> Result:
    """Every kernel's time in one call of the rows, as many as there is time for, those that are profiled first."""
    written = check.scratch / "times.json"
    names = [row.name for row in check.rows]
    command = python(
        "benches.device_time", "--rows", ",".join(names), "--size", check.args.size, "--device", check.args.device,
        "--output", written,
    )  # fmt: skip
    outcome = process.run(command, check.log("time"), check.left("time"))
    found = json.loads(written.read_text()) if written.exists() else []
    check.results["times"] = found
    missing = [f"{one['name']}: {one['error']}" for one in found if "error" in one]
    missing += [f"{name}: no time left" for name in names if name not in {one["name"] for one in found}]
    why = {"why": "; ".join(missing) if found else outcome.tail()} if missing else {}
    wanted = [name for name in names if name in kernels.HOT] or names[:1]
    measured = {one["name"] for one in found if "error" not in one}
    return {"status": "passed" if measured.issuperset(wanted) else "failed", **why}


def step(check: Check) -> Result:
    """MuDeep_v2's training step beside the published one in plain functions: agreement, time and peak memory."""
    if importlib.util.find_spec("torchvision") is None:
        return {"status": "skipped", "why": "there is no torchvision"}
    written = check.folder / "mudeep_step.json"
    command = python("benches.mudeep_step", "--device", check.args.device, "--steps", "5", "--output", written)
    if check.args.size == "small":
        command += ["--batch", "8", "--height", "48", "--width", "32"]
    outcome = process.run(command, check.log("step"), check.left("step"))
    return {**judged(outcome), **({"figures": json.loads(written.read_text())} if outcome.code == 0 else {})}


def profile(check: Check) -> Result:
    """ncu on our kernels of some rows, one row a process, as many as there is time for."""
    ncu = shutil.which("ncu")
    if check.args.device != "cuda" or ncu is None:
        return {"status": "skipped", "why": "there is no ncu" if check.args.device == "cuda" else "there is no GPU"}
    failed, names = {}, [row.name for row in check.rows if check.args.rows or row.name in kernels.HOT]
    for name in names:
        if check.left("profile") < 5:
            failed[name] = "no time left"
            continue
        try:
            check.results["kernels"] += kernels.profile(ncu, name, check)
        except RuntimeError as error:
            failed[name] = str(error)
        check.write()
    why = {"why": "; ".join(f"{name}: {error}" for name, error in failed.items())} if failed else {}
    return {"status": "failed" if len(failed) == len(names) else "passed", **why}


PARTS: dict[str, Callable[[Check], Result]] = {
    "build": build,
    "tests": tests,
    "memcheck": memcheck,
    "racecheck": racecheck,
    "bench": bench,
    "time": time_on_gpu,
    "step": step,
    "profile": profile,
}
