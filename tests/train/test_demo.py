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


def test_every_setting_of_the_demo_is_one_of_the_script():
    parser = demo.alignedreid.make_parser()
    args = parser.parse_args([*demo.MODEL, *demo.TRAINING, *demo.SCHEDULE])
    assert args.max_epoch > args.stepsize > 0
    assert demo.PEOPLE["train_identities"] >= args.train_batch // args.num_instances
    with pytest.raises(SystemExit):
        demo.main(["--no-such-flag"])
