"""make bench: its rows at a tiny size, what is compared with what was committed, and its tables."""

import json
import types

import numpy as np
import pytest
import torch

import benches.report
from benches import conftest, inputs, peers, process
from benches.cases import Peer
from benches.cpu import alone, committed, contestant, gemm, growth, machine, memory, race, report, rows, session
from benches.rows import GEMM
from reidops import reference

CPU = torch.device("cpu")
OPTIONAL = {"faiss", "pytorch_metric_learning", "torchmetrics", "torchreid with its Cython module"}
CEILINGS = {"copy_gb_s": 20.0, "OpenBLAS": 300.0, "fp32_gflops": 300.0, "bf16_gflops": 900.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sizes are too small for more, here and in the programs that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("REIDOPS_DATA", "")
        patch.setattr(contestant, "PAUSE", 0.0)
        patch.setattr(contestant, "SAMPLE_MS", 0.0)
        patch.setattr(race, "by_itself", lambda *arguments, **more: {"error": "left out of this test"})
        yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("row", rows.every(), ids=lambda row: row.name)
def test_every_row_runs_and_is_right(row):
    figures = race.measure(row, "small", seconds=0)
    assert figures["checks"]["ok"]
    errors = {peer["error"] for peer in figures["peers"].values() if "error" in peer}
    assert errors <= {f"{name} is not installed" for name in OPTIONAL} | {"left out of this test"}
    judged = rows.judged(row, "small", figures, CEILINGS)
    assert judged["ratio"] == pytest.approx(judged["ours_ms"] / judged["limit"]["ms"])
    assert judged["over"] and all(ratio > 0 for ratio in judged["over"].values())
    assert len(judged["bars"]) == len(row.bars)
    assert row.shape_text() and row.shape_text("part")


def test_a_wrong_result_is_told():
    row = rows.named("channel_attention-288")

    def build(*arguments):
        case = row.build(*arguments)
        case.ours = lambda query, key, value: value
        return case

    assert race.measure(row._replace(build=build), "small", seconds=0)["checks"]["ok"] is False


def test_rows_are_chosen_by_parts_of_their_names():
    assert rows.select("knn-medium, rank") == {"knn-medium", "rank_metrics"}
    assert rows.select("knn") == {"knn"}  # a whole name
    assert len(rows.select(None)) == len(rows.every()) == len({row.name for row in rows.every()})
    with pytest.raises(ValueError, match="got nosuch"):
        rows.select("knn,nosuch")


def test_every_operator_has_a_file_that_make_bench_runs():
    files = {path.stem.removeprefix("bench_") for path in (process.ROOT / "benches").glob("bench_*.py")}
    makefile = (process.ROOT / "Makefile").read_text()
    listed = next(line for line in makefile.splitlines() if line.startswith("BENCHES := ")).split()[2:]
    assert files == set(listed) == {*rows.OPS, "threads", "simd"}


def test_bars_for_bfloat16_ask_for_its_instructions(monkeypatch):
    (bar, *_) = rows.named("knn-medium").bars
    figures = {"ours_ms": 1.0, "peers": {rows.HIGHEST: {"ms": 2.0}}}
    monkeypatch.setattr(rows, "has_bfloat16", lambda: True)
    assert bar.judge(figures)["met"] is True
    monkeypatch.setattr(rows, "has_bfloat16", lambda: False)
    assert bar.judge(figures)["met"] is None


def test_a_peer_of_which_something_is_missing_is_named():
    def absent():
        raise ModuleNotFoundError("No module named 'nosuch'", name="nosuch")

    case = types.SimpleNamespace(inputs=[()], peers={"other": Peer(absent)})
    rivals, figures = race.contestants(case)
    assert rivals == {} and figures["peers"]["other"]["error"] == "nosuch is not installed"


# ---------------------------------------------------------------------------------------------- peers


def test_peers_of_mining_agree_with_the_definition():
    labels = torch.arange(12) // 3
    features = inputs.features(labels, 16)
    exact = reference.batch_hard(features, labels)[:2]
    for found in (peers.hard_example_mining(features, labels), peers.triplets_by_slices(features, 3)):
        for some, wanted in zip(found, exact, strict=True):
            torch.testing.assert_close(some.double(), wanted, rtol=1e-4, atol=1e-4)


def test_peers_of_dmli_agree_with_the_definition():
    x, y = inputs.features(inputs.people(9, 3, CPU), 16, 5).split((3, 6))
    exact = reference.dmli_matrix(x, y)
    torch.testing.assert_close(torch.from_numpy(peers.dmli_matrix_numpy(x.numpy(), y.numpy())).double(), exact)
    torch.testing.assert_close(peers.dmli_matrix_torch(x, y, 2).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(peers.dmli_torch(x, y[:3]).double(), exact.diagonal(), rtol=1e-5, atol=1e-5)


def test_peers_of_scores_and_neighbours_agree_with_the_definition():
    case = rows.named("rank_metrics").case("small")
    exact = reference.rank_metrics(*case.inputs[0])
    for name, peer in case.peers.items():
        try:
            found = peer.run(*(peer.inputs or case.inputs)[0])
        except ModuleNotFoundError:
            continue
        mean_ap = found if name == "torchmetrics" else np.nanmean(found[1])
        assert mean_ap == pytest.approx(exact.mean_ap.item(), rel=1e-5), name
    case = rows.named("knn").case("small")
    exact = reference.knn(*case.inputs[0], 5)
    for name in ("torch.cdist, topk", "addmm, topk", "faiss IndexFlatL2", "faiss.knn"):
        peer = case.peers[name]
        try:
            found = peer.run(*(peer.inputs or case.inputs)[0])
        except ModuleNotFoundError:
            continue
        assert (torch.as_tensor(found[1]).sort().values == exact.index.sort().values).double().mean() > 0.99, name


def test_published_re_ranking_agrees_with_the_definition():
    query, gallery = inputs.features(inputs.people(90, 9, CPU), 16).split((20, 70))
    found = peers.k_reciprocal_numpy(query.numpy(), gallery.numpy())
    exact = reference.k_reciprocal(query, gallery).numpy()
    assert (np.abs(found - exact) > 3e-3).mean() < 0.01  # rounding decides a tie here and there


def test_products_are_the_same_and_the_fastest_is_chosen():
    x, y = inputs.normal(6, 8, device=CPU), inputs.normal(5, 8, device=CPU, seed=1)
    found = [torch.as_tensor(peer.run(*peer.inputs[0])).clone() for peer in gemm.products(x, y).values()]
    for product in found:
        torch.testing.assert_close(product, x @ y.T)
    figures = {f"{GEMM}, a": {"ms": 3.0}, f"{GEMM}, b": {"ms": 2.0, "note": "scaled"}, f"{GEMM}, c": {"error": "no"}}
    assert gemm.with_fastest(figures)[GEMM] == {"ms": 2.0, "note": "b, scaled"}
    assert gemm.with_fastest({"other": {"ms": 1.0}}) == {"other": {"ms": 1.0}}


def test_only_some_rows_of_a_large_product_are_computed(monkeypatch):
    x, y = inputs.normal(100, 8, device=CPU), inputs.normal(50, 8, device=CPU)
    monkeypatch.setattr(gemm, "MOST", 2.0 * 25 * 8 * 50)
    for peer in gemm.products(x, y).values():
        assert peer.share == 0.25 and len(peer.run(*peer.inputs[0])) == 25


# ---------------------------------------------------------------------------------------------- a run


def run_of(tmp_path, monkeypatch, ratios):
    """A run in which the row "knn" measures the given ratios to a GEMM, one after another, and what it said."""
    said, given = [], iter(ratios)

    def measure(self, row, rounds):
        ratio = next(given)
        figures = {
            "name": row.name, "op": row.op, "shape": row.shape_text(), "precision": "highest", "ours_ms": ratio,
            "ours_low": ratio, "ours_high": ratio, "ours_calls": 3, "checks": {"ok": True}, "seconds": 1.0,
            "peers": {GEMM: {"ms": 1.0}, f"{GEMM}, torch.mm": {"ms": 0.1}, "other": {"error": "none"}},
        }  # fmt: skip
        return rows.judged(row, "full", figures, CEILINGS)

    monkeypatch.setattr(session.Session, "measure", measure)
    monkeypatch.setattr(machine, "facts", lambda: {"CPU": "a processor", "cores": 2, "torch": "2", "numpy": "2"})
    monkeypatch.setattr(committed, "ASIDE", tmp_path / "aside")
    monkeypatch.setattr(report, "write_readme", lambda: None)
    run = session.Session(said.append, folder=tmp_path / "results")
    run.measured = CEILINGS
    return run, said


def kept(tmp_path, monkeypatch, ratio):
    """Figures of this machine as if they had been committed."""
    run, _ = run_of(tmp_path, monkeypatch, [ratio])
    assert run.bench(rows.named("knn"), None) is None
    return run.write()


@pytest.mark.parametrize("ratios, measured", [([1.3, 1.3], 2), ([1.2], 1), ([1.3, 1.2], 2), ([0.5], 1)])
def test_a_ratio_that_is_worse_twice_fails(tmp_path, monkeypatch, ratios, measured):
    path = kept(tmp_path, monkeypatch, 1.0)
    run, said = run_of(tmp_path, monkeypatch, ratios)
    complaint = run.bench(rows.named("knn"), None)
    assert sum("measured again" in line for line in said) == measured - 1
    if ratios[-1] > 1.25:
        assert complaint == "knn, ours over GEMM 1.3, committed 1, worse by 30 %"
        assert run.write().parent == tmp_path / "aside"  # what was committed stays
        run.update = True
        assert run.write() == path and json.loads(path.read_text())["rows"][0]["ours_ms"] == 1.3
    else:
        assert complaint is None
        assert run.write() == path and json.loads(path.read_text())["rows"][0]["ours_ms"] == ratios[-1]


def test_a_wrong_result_never_replaces_what_was_committed(tmp_path, monkeypatch):
    path = kept(tmp_path, monkeypatch, 1.0)
    run, _ = run_of(tmp_path, monkeypatch, [0.5])
    measure = session.Session.measure
    monkeypatch.setattr(session.Session, "measure", lambda *given: {**measure(*given), "checks": {"ok": False}})
    run.update = True
    assert "wrong result" in run.bench(rows.named("knn"), None)
    assert run.write().parent == tmp_path / "aside" and json.loads(path.read_text())["rows"][0]["ours_ms"] == 1.0


def test_without_figures_of_this_machine_nothing_is_compared(tmp_path, monkeypatch):
    run, said = run_of(tmp_path, monkeypatch, [99.0])
    assert run.reference is None and run.bench(rows.named("knn"), None) is None
    assert run.write().parent == tmp_path / "results"


def test_rows_of_an_earlier_run_are_kept(tmp_path, monkeypatch):
    path = kept(tmp_path, monkeypatch, 1.0)
    run, _ = run_of(tmp_path, monkeypatch, [2.0])
    run.bench(rows.named("dmli-32"), None)
    run.threads["knn"] = {"op": "knn", "shape": "small", "ms": {"1": 2.0, "2": 1.0}, "same": True}
    assert run.write() == path
    together = json.loads(path.read_text())
    assert [row["name"] for row in together["rows"]] == ["knn", "dmli-32"] and "knn" in together["threads"]
    assert {row["commit"] for row in together["rows"]} == {process.commit()}


def test_the_reference_is_what_was_committed_last():
    assert committed.reference("nosuch") is None
    if not committed.machines():
        pytest.skip("no figures of a processor yet")
    assert committed.reference(committed.machines()[0])["rows"]


def test_tables(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path, monkeypatch, [1.0])
    run.bench(rows.named("knn"), None)
    run.simd["knn"] = {"op": "knn", "shape": "small", "ms": {"baseline": 2.0, "avx2": 1.0}, "same": True}
    results = run.results()
    text = report.summary(results)
    assert "bar: <= 0.65 x faiss IndexFlatL2" in text and "not measured" in text and "ms by SIMD level:" in text
    table = report.markdown({**results, "rows": [{**row, "commit": "abc"} for row in results["rows"]]})
    assert table.count("not measured |") == len(rows.every()) - 1
    assert "GEMM: 1<br>" in table and "other: none" in table and "commit abc" in table
    assert "No processor" in report.markdown(None)


def test_the_readme_shows_the_kept_results():
    shown = benches.report.README.read_text().split(report.BEGIN)[1].split(report.END)[0].strip()
    assert shown == report.all_machines().strip(), "run: python -m benches.cpu.report"


def test_the_name_of_a_machine():
    cpu = "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz"
    assert machine.slug_of(cpu, 2, "avx512") == "intel-xeon-platinum-8480c-2-cores-avx512"


def test_the_benches_run_only_as_make_bench_runs_them(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with pytest.raises(pytest.UsageError, match="OPENBLAS_NUM_THREADS should be 2"):
        conftest.pytest_configure(None)


# ---------------------------------------------------------------------------------------------- memory, growth


def test_memory_of_a_call_is_counted():
    def call():
        temporary = torch.ones(1 << 23)
        return temporary[:1024].clone()

    result, peak = memory.peak(call)
    if peak is None:
        pytest.skip("this kernel does not count the peak of a call")
    beyond = memory.beyond(peak, result)
    assert 0.9 * (1 << 25) < beyond < 1.5 * (1 << 25)
    assert memory.beyond(None, result) is None


def test_a_contestant_in_a_process_of_its_own(tmp_path):
    found = alone.start("dmli-32", "--size", "small", "--threads", "1", "--save", str(tmp_path / "result"))
    assert found["ms"] > 0 and found["calls"] == 1 and len(found["digest"]) == 64
    assert [tensor.shape for tensor in torch.load(tmp_path / "result")] == [(4,), (4, 8, 16), (4, 8, 16)]


def test_answers_that_differ():
    best = [torch.tensor([1.0, 2.0, torch.inf, 4.0])]
    assert session.share_differing([best[0] + 1e-5], best) == 0
    assert session.share_differing([torch.tensor([1.1, 2.0, torch.inf, 4.0])], best) == 0.25
    assert session.share_differing([torch.tensor([1.0, 2.0, 3.0, 4.0])], best) == 0.25


def test_the_exponent_of_a_power():
    sizes = [2000, 5000, 10000]
    assert growth.exponent(sizes, [3e-6 * size**2 for size in sizes]) == pytest.approx(2)
    assert growth.exponent(sizes, [None, 1.0, 2.0]) == pytest.approx(1)
    assert growth.exponent(sizes, [None, None, 2.0]) is None


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    points = [{"images": n, "ms": n**1.5, "workspace_bytes": 1000 * n} for n in (1000, 8000)]
    curve = growth.fitted(points)
    assert curve["ms_exponent"] == pytest.approx(1.5) and curve["memory_exponent"] is None  # one value is too small
    assert "time grows as N^1.50. 1,000: " in report.growth({"curves": {"knn": curve}}, "here")
    growth.plot({"curves": {"knn": curve}}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
