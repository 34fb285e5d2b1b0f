"""What both training scripts do after their epochs."""

import pytest

from tests.train.checks import KEYS
from tests.train.conftest import SMALL, runner
from tests.train.test_mudeep import SMALL as SMALL_MUDEEP
from train import alignedreid, mudeep


@pytest.mark.parametrize(("script", "small"), [(alignedreid, SMALL), (mudeep, SMALL_MUDEEP)])
def test_the_last_model_is_tested_once(small_people, tmp_path, monkeypatch, script, small):
    run, extract, tested = runner(script, small, small_people), script.extract, []

    def noting(args, dataset, *rest):
        tested.append(dataset.name)
        return extract(args, dataset, *rest)

    monkeypatch.setattr(script, "extract", noting)
    trained = run(tmp_path, "--max-epoch", 1)
    assert tested == ["synthetic"]
    again = run(tmp_path, "--max-epoch", 1, "--resume", tmp_path / "last.pth")  # no epoch is left that would test
    assert tested == ["synthetic"] * 2
    assert len(trained["rows"]) == len(again["rows"]) > 0
    for ours, theirs in zip(again["rows"], trained["rows"], strict=True):
        assert {name: ours[name] for name in KEYS} == {name: theirs[name] for name in KEYS}
