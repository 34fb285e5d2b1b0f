"""`make demo` in small: every file it promises, in the promised form."""

import json

import pytest

from tests.train.checks import assert_picture, assert_table
from train import demo


def test_quick_demo(tmp_path, capsys):
    results = demo.main(["--quick", "--output", str(tmp_path / "demo"), "--threads", "1"])
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == results
    assert results["dataset"] == "synthetic"
    assert results["seconds"] > 0
    assert results["machine"]["torch"]
    for rows in (results["rows"], results["partial"]):
        assert_table(rows)
    assert results["rows"] != results["partial"]
    for name in ("alignment", "ranked", "curves"):
        assert_picture(tmp_path / "demo" / f"{name}.png")
    assert capsys.readouterr().out.count("Global+DMLI   k-reciprocal") == 2


def test_quick_demo_of_mudeep(tmp_path, capsys):
    results = demo.main(["--system", "mudeep", "--quick", "--output", str(tmp_path / "demo"), "--threads", "1"])
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == results
    assert [(row["protocol"], row["reranking"]) for row in results["rows"]] == [
        ("mudeep", False), ("market1501", False), ("mudeep", True), ("market1501", True)]  # fmt: skip
    assert results["training"]["epochs"] == 2
    for name in ("leader", "ranked", "curves"):
        assert_picture(tmp_path / "demo" / f"{name}.png")
    assert "epoch   2/2" in capsys.readouterr().out


def test_every_setting_of_the_demo_is_one_of_the_script():
    parser = demo.alignedreid.make_parser()
    args = parser.parse_args([*demo.MODEL, *demo.TRAINING, *demo.SCHEDULE])
    assert args.max_epoch > args.stepsize > 0
    assert demo.PEOPLE["train_identities"] >= args.train_batch // args.num_instances
    args = demo.mudeep.make_parser().parse_args([*demo.MUDEEP, *demo.MUDEEP_SCHEDULE])
    assert args.max_epoch > args.stepsize > 0
    assert demo.MUDEEP_PEOPLE["train_identities"] >= args.P
    with pytest.raises(SystemExit):
        demo.main(["--no-such-flag"])


@pytest.mark.parametrize(("error", "code", "line"), [
    (ValueError("too few\nimages"), 2, "error: images"),
    (KeyboardInterrupt(), 130, "interrupted"),
])  # fmt: skip
def test_trouble_ends_in_one_line(tmp_path, monkeypatch, capsys, error, code, line):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(demo, "write_synthetic", fails)
    with pytest.raises(SystemExit) as caught:
        demo.main(["--output", str(tmp_path)])
    assert caught.value.code == code
    assert capsys.readouterr().err.splitlines() == [line]
