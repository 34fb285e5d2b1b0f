"""make gpu-check and the benchmarks, with tiny sizes and no GPU."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from benches import (
    device_time,
    gpu_check,
    gpu_sanitize,
    kernels,
    measure,
    mudeep_step,
    parts,
    process,
    report,
    rows,
    timing,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sizes are too small for more, here and in the programs that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Exit status and results of a run in which a test fails."""
    folder = tmp_path_factory.mktemp("checked")
    (folder / "test_good.py").write_text(
        "import pytest\n@pytest.mark.parametrize('d', ['cpu'])\ndef test_it(d): pass\n"
    )
    (folder / "test_bad.py").write_text("def test_cpu_too():\n    assert 1 + 1 == 3\n")
    out = folder / "out"
    status = gpu_check.main(
        ["--device", "cpu", "--size", "small", "--seconds", "0", "--only", "tests,memcheck,bench,time",
         "--rows", "knn,dmli-128", "--tests", str(folder), "--out", str(out)]
    )  # fmt: skip
    return status, json.loads((out / "results.json").read_text())


def test_a_failing_part_is_told_and_stops_no_other(checked):
    status, results = checked
    assert status == 1
    assert results["parts"]["tests"]["status"] == "failed"
    assert results["parts"]["tests"]["counts"] == {"passed": 1, "failed": 1}
    assert "test_cpu_too" in results["parts"]["tests"]["failures"][0]
    assert results["parts"]["memcheck"]["status"] == "passed"
    assert results["parts"]["bench"]["status"] == "passed"
    assert [row["name"] for row in results["rows"]] == ["knn", "dmli-128"]
    assert results["parts"]["time"]["status"] == "passed"
    assert [one["name"] for one in results["times"]] == ["knn", "dmli-128"]


def test_what_a_row_holds(checked):
    _, results = checked
    assert results["machine"]["torch"] == torch.__version__
    assert set(results["ceilings"]) == {"copy_tb_s", "bf16_tflops", "tf32_tflops", "fp32_tflops"}
    row = results["rows"][0]
    assert row["op"] == "knn" and row["shape"] == "30, k = 5, d = 16" and row["precision"] == "high"
    assert row["checks"]["ok"] is True and row["tflops"] > 0 and row["tb_s"] > 0
    assert row["ours_low"] <= row["ours_ms"] <= row["ours_high"] and row["ours_calls"] >= 3
    assert row["ratio"] == pytest.approx(row["ours_ms"] / row["limit"]["ms"])
    (bar,) = row["bars"]
    assert bar["value"] == pytest.approx(row["ours_ms"] / (row["peers"][rows.GEMM]["ms"] / 2))
    assert bar["met"] == (bar["value"] <= 1.2) == row["met"]


def test_tables_of_results(checked):
    _, results = checked
    lines = report.summary(results).splitlines()
    assert any(line.startswith("tests: failed") for line in lines) and any(
        line.startswith("dmli-128 ") for line in lines
    )
    text = report.markdown(results)
    assert text.count("not measured") == len(rows.ROWS) - 2
    assert "Measured there: a copy moves" in text


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.name)
def test_every_row_runs_and_is_right(row):
    figures = measure.measure(row, "small", CPU, seconds=0)
    assert "error" not in figures
    assert figures["checks"]["ok"]
    assert {name: peer["error"] for name, peer in figures["peers"].items() if "error" in peer} == {}


def test_selected_rows():
    assert [row.name for row in rows.select("k_reciprocal-market-high")] == ["k_reciprocal-market-high"]
    assert [row.name for row in rows.select("rank, knn")] == ["knn", "rank_metrics-market", "rank_metrics-msmt17"]
    assert len(rows.select()) == len(rows.ROWS)
    with pytest.raises(ValueError, match="got nosuch"):
        rows.select("knn,nosuch")


# ---------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def small_check(tmp_path):
    """A run that has not begun."""
    args = ["--device", "cpu", "--size", "small", "--out", str(tmp_path / "out"), "--rows", "knn,dmli-128,rank_metrics"]
    check = gpu_check.Check(gpu_check.parse(args))
    check.ends = dict.fromkeys(gpu_check.LIMITS, time.monotonic() + 15)
    return check


WORKER = """
import json, os, sys, time
names, output = sys.argv[1 + sys.argv.index("--rows")].split(","), sys.argv[1 + sys.argv.index("--output")]
for name in names:
    with open(output, "a") as file:
        print(json.dumps({"started": name}), file=file, flush=True)
        if name == "dmli-128":
            os._exit(7)
        if name == "rank_metrics-market":
            time.sleep(60)
        print(json.dumps({"row": {"name": name, "ours_ms": 1.0}}), file=file, flush=True)
"""


def test_rows_after_one_that_dies_and_one_that_hangs(small_check, monkeypatch):
    small_check.rows = [row._replace(time_limit=0.5) for row in small_check.rows]
    monkeypatch.setattr(parts, "python", lambda module, *arguments: [sys.executable, "-c", WORKER, *arguments])
    result = parts.bench(small_check)
    assert result["status"] == "failed" and "dmli-128" in result["why"]
    found = {row["name"]: row for row in json.loads((small_check.folder / "results.json").read_text())["rows"]}
    assert "exit status 7" in found["dmli-128"]["error"]
    assert "took too long" in found["rank_metrics-market"]["error"]
    assert found["knn"]["ours_ms"] == found["rank_metrics-msmt17"]["ours_ms"] == 1.0


def test_a_benchmark_that_does_not_start(small_check, monkeypatch):
    monkeypatch.setattr(parts, "python", lambda *arguments: [sys.executable, "-c", "import nosuch"])
    result = parts.bench(small_check)
    assert result["status"] == "failed" and "nosuch" in result["why"]
    assert all(row["error"] == "not started" for row in small_check.results["rows"])


def test_a_row_that_the_time_does_not_suffice_for(small_check, monkeypatch):
    small_check.rows = [row for row in small_check.rows if row.name == "rank_metrics-market"]
    small_check.ends["bench"] = time.monotonic() + 2
    monkeypatch.setattr(parts, "python", lambda module, *arguments: [sys.executable, "-c", WORKER, *arguments])
    parts.bench(small_check)
    assert [row["error"] for row in small_check.results["rows"]] == ["no time left"]


SANITIZED = """
import sys
first, deadly, words = int(sys.argv[-1]), {deadly}, {words!r}
for number in range(first, 4):
    print(f"call {{number}}: call of {{number}} (0.1 s)", flush=True)
    if number in deadly:
        print(words)
        sys.exit(9)
print(f"{{4 - first}} called, 0 without a kernel, 0 failed")
"""
TOOL_DIED = "========= Internal Sanitizer Error: why\n========= Error: process didn't terminate successfully"


@pytest.mark.parametrize(
    ("deadly", "words", "status", "checked"),
    [
        ((), "", "passed", 4),
        ((1, 3), TOOL_DIED, "incomplete", 2),
        ((0, 1, 2, 3), TOOL_DIED, "failed", 0),
        ((2,), f"========= Error: Race reported\n{TOOL_DIED}", "failed", 3),
        ((2,), "Segmentation fault", "failed", 3),
    ],
)
def test_sanitizing_goes_on_after_a_call_that_died(small_check, monkeypatch, deadly, words, status, checked):
    program = SANITIZED.format(deadly=deadly, words=words)
    monkeypatch.setattr(parts, "python", lambda module, *arguments: [sys.executable, "-c", program, *arguments])
    result = parts.racecheck(small_check)
    assert (result["status"], result["checked"]) == (status, checked)
    assert result["not checked"] == [f"call of {number}" for number in deadly]
    small_check.results["parts"]["racecheck"] = result
    assert small_check.passed() == (status != "failed")


def test_sanitizing_from_a_call_on(capsys):
    assert gpu_sanitize.main(["--device", "cpu"]) == 0
    every = capsys.readouterr().out.splitlines()
    assert gpu_sanitize.main(["--device", "cpu", "--first", str(len(every) - 3)]) == 0
    some = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" (")[0] for line in some[:-1]] == [line.rpartition(" (")[0] for line in every[-3:-1]]
    assert some[-1] == "2 called, 0 without a kernel, 0 failed"


def test_an_error_in_a_part_is_its_result(small_check, monkeypatch, capsys):
    monkeypatch.setitem(parts.PARTS, "build", lambda check: 1 / 0)
    small_check.run("build")
    assert small_check.results["parts"]["build"]["status"] == "failed" and not small_check.passed()
    assert "division by zero" in capsys.readouterr().out


def test_programs_are_stopped_with_all_they_started(tmp_path):
    program = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    outcome = process.run([sys.executable, "-c", program], tmp_path / "log", 1)
    assert outcome.code is None and outcome.seconds < 20
    state = subprocess.run(["ps", "-o", "stat=", "-p", outcome.output.strip()], capture_output=True, text=True).stdout
    assert not state.strip() or state.startswith("Z")


# ---------------------------------------------------------------------------------------------- what other tools say


def test_bars_judge():
    bars = rows.ROWS[0].bars
    figures = {"ours_ms": 2.0, "peers": {rows.GEMM: {"ms": 1.0}}, "workspace_bytes": 1e6}
    assert [bar.judge(figures)["met"] for bar in bars] == [False, True]
    assert [bar.judge({})["met"] for bar in bars] == [None, None]
    assert rows.speed("other", 3).judge({"ours_ms": 1.0, "peers": {"other": {"ms": 4.0}}}) == {
        "bar": ">= 3 x the speed of other",
        "value": 4.0,
        "met": True,
    }


def test_limit_is_the_longest_part():
    ceilings = {"bf16_tflops": 800.0, "tf32_tflops": 400.0, "fp32_tflops": 50.0, "copy_tb_s": 4.0, "launch_us": 2.0}
    high, highest = (rows.select(f"dmli_matrix-2048-{word}")[0] for word in ("high", "highest"))
    assert rows.limit(high, "full", ceilings)["ms"] == pytest.approx(2 * 26944 * 127304 * 2048 / 400e9)
    assert rows.limit(highest, "full", ceilings)["ms"] == pytest.approx(3 * rows.limit(high, "full", ceilings)["ms"])
    assert rows.limit(rows.select("rank_metrics-market")[0], "full", ceilings)["ms"] == pytest.approx(0.0536, rel=1e-2)
    assert "launches" in rows.limit(rows.select("batch_hard-64")[0], "full", ceilings)["how"]
    assert rows.limit(high, "full", None) is None


def test_spilling_kernels():
    text = "ptxas info    : Function properties for {}\n    8 bytes stack frame, {} bytes spill stores, 0 bytes spill"
    said = f"{text.format('good', 0)} loads\n{text.format('bad', 12)} loads\n"
    assert parts.spilling(said) == ["bad: 8 bytes stack frame, 12 bytes spill stores, 0 bytes spill loads"]


def test_counters_of_kernels():
    # fmt: off
    names = ["ID", "Kernel Name", "gpu__time_duration.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed",
             "lts__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
             "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active", "launch__registers_per_thread"]
    # fmt: on
    kernel = "void reidops::(anonymous namespace)::{}<float, (int)8>(const float *, long)"
    launches = [
        ["0", kernel.format("tile"), "1,000", "20", "30", "90", "90", "128"],
        ["1", kernel.format("tile"), "2,000", "20", "30", "80", "80", "128"],
        ["2", kernel.format("merge"), "500", "10", "12", "8", "", "40"],
    ]
    lines = [names, ["", "", "ns", "%", "%", "%", "%", "register/thread"], *launches]
    page = "==PROF== Connected\n" + "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    tile, merge = kernels.longest(kernels.records(page))
    assert (tile["kernel"], tile["ns"], tile["bound"]) == ("tile<float, (int)8>", 2000.0, "tensor 80 %")
    assert (merge["kernel"], merge["registers"], merge["bound"]) == ("merge<float, (int)8>", 40.0, "latency (l2 12 %)")


class Launch:
    """An event of torch's profiler."""

    def __init__(self, name, begin, end):
        self.name = name
        self.time_range = type("Range", (), {"start": begin, "end": end})


def kernels_of_knn():
    names = "void reidops::{}<float>(reidops::Tile<float>)", "sm90_xmma_gemm_f32", "Memset (Device)"
    launches = [
        Launch(names[0].format("(anonymous namespace)::near"), 0, 3000),
        Launch(names[0].format("(anonymous namespace)::near"), 3000, 4000),
        Launch(names[0].format("pack"), 4000, 4500),
        Launch(names[1], 2000, 7000),
        Launch(names[2], 7000, 7001),
    ]
    spans = [(launch.time_range.start, launch.time_range.end) for launch in launches]
    busy = device_time.covered(spans) / 1e3
    return {"name": "knn", "busy_ms": busy, "span_ms": 8.0, "kernels": device_time.by_kernel(launches)}


def test_times_of_kernels():
    found = kernels_of_knn()
    assert found["busy_ms"] == 7.001
    gemm, near, pack, fill = found["kernels"]
    assert near == {"kernel": "near<float>", "ours": True, "launches": 2, "ms": 4, "longest_ms": 3, "last_ms": 1}
    assert (gemm["ours"], pack["ms"], fill["launches"]) == (False, 0.5, 1)
    line = "| knn | 7 of 8 | products 5, `near` 4, `pack` 0.5 |"
    assert line in report.kernels_table({"times": [{"name": "dmli-128", "error": "lost"}, found]}).splitlines()


def test_the_slowest_of_our_kernels_is_profiled():
    assert kernels.slowest([kernels_of_knn()], "knn") == "near"
    assert kernels.slowest([kernels_of_knn()], "dmli-128") is None
    measured = [
        {"row": "knn", "kernel": f"{name}<float>", "ns": ns, "bound": name} for name, ns in (("near", 1), ("pack", 2))
    ]
    (knn,) = rows.select("knn")
    assert report.bound(knn, {"ours_ms": 1.0}, {"kernels": measured, "times": [kernels_of_knn()]}).startswith("near")
    assert report.bound(knn, {"ours_ms": 1.0}, {"kernels": measured}).startswith("pack")


NCU = """#!/bin/sh
echo "==PROF== $*"
echo '"ID","Kernel Name","gpu__time_duration.sum","sm__throughput.avg.pct_of_peak_sustained_elapsed"'
echo '"","","ns","%"'
echo '"0","void reidops::near<float>(reidops::Tile<float>)","2,000","60"'
"""


def test_profile_of_a_row(small_check):
    small_check.results["times"] = [kernels_of_knn()]
    program = small_check.scratch / "ncu"
    program.write_text(NCU)
    program.chmod(0o755)
    (found,) = kernels.profile(str(program), "knn", small_check)
    assert (found["row"], found["kernel"], found["bound"]) == ("knn", "near<float>", "sm 60 %")
    asked = small_check.log("profile").read_text()
    assert "regex:reidops::.*near " in asked and "--call-only --rows knn --size small" in asked
    program.write_text("#!/bin/sh\necho no kernels were profiled\n")
    with pytest.raises(RuntimeError, match="no kernels were profiled"):
        kernels.profile(str(program), "knn", small_check)


def test_graphs_of_slow_calls_are_short():
    assert [timing.calls_in_graph(ms) for ms in (0.0, 0.01, 2.0, 50.0)] == [64, 64, 10, 1]


def test_the_step_is_compared_without_tf32():
    before = torch.backends.cudnn.allow_tf32
    with mudeep_step.without_tf32():
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 == before
    text = mudeep_step.table({"agreement": {"float32": {"loss": 1e-7}, "float64": {"loss": 1e-16}}})
    assert text.splitlines() == ["agreement, float32 without TF32: loss 1.0e-07", "agreement, float64: loss 1.0e-16"]


# ---------------------------------------------------------------------------------------------- results that are kept


def kept(name, commit, ms, when="2026-01-01"):
    """Results with one row."""
    return {
        "when": when, "commit": commit, "device": "cuda", "size": "full", "ceilings": {"copy_tb_s": 4.0}, "parts": {},
        "machine": {"GPUs": ["NVIDIA H200, capability 9.0, 140 GiB"]}, "kernels": [],
        "rows": [{"name": name, "ours_ms": ms, "bars": [], "peers": {}}], "times": [{"name": name, "busy_ms": ms}],
    }  # fmt: skip


def test_newer_rows_take_the_place_of_older_ones(tmp_path):
    for number, results in enumerate([kept("knn", "a", 3.0), kept("dmli-128", "b", 1.0), kept("knn", "c", 2.0)]):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(results))
        report.add([path], tmp_path)
    together = json.loads((tmp_path / "nvidia-h200.json").read_text())
    found = [(row["name"], row["commit"], row["ours_ms"]) for row in together["rows"]]
    assert found == [("knn", "c", 2.0), ("dmli-128", "b", 1.0)]
    assert "commit b, c" in report.markdown({**together, "times": []})
    assert sorted((one["name"], one["busy_ms"]) for one in together["times"]) == [("dmli-128", 1.0), ("knn", 2.0)]


def test_only_full_sizes_of_a_gpu_are_kept(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**kept("knn", "a", 3.0), "size": "small"}))
    with pytest.raises(SystemExit, match="small sizes"):
        report.add([path], tmp_path)


def test_the_newest_results_are_shown(tmp_path):
    assert report.newest(tmp_path) is None
    for name, when in (("nvidia-a", "2026-02-01"), ("nvidia-b", "2026-01-01"), ("intel", "2026-03-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps(kept("knn", name, 1.0, when)))
    assert report.newest(tmp_path)["commit"] == "nvidia-a"


def test_the_readme_shows_the_kept_results():
    shown = report.README.read_text().split(report.BEGIN)[1].split(report.END)[0].strip()
    assert shown == report.markdown(report.newest()).strip(), "run: python -m benches.report"


def test_commit_of_a_copy_without_history(monkeypatch):
    monkeypatch.setitem(os.environ, "REIDOPS_COMMIT", "abc123")
    assert process.commit() == "abc123"
