"""What both training scripts do before and after their epochs."""

import shutil
import warnings

import pytest

from tests.train.checks import KEYS
from tests.train.conftest import SMALL, runner
from tests.train.test_mudeep import SMALL as SMALL_MUDEEP
from train import alignedreid, mudeep
from train.data import make_partial_queries
from train.domains import read_domains
from train.script import read_dataset


def test_a_warning_about_a_data_set_is_one_line(small_people, tmp_path, capsys):
    home = shutil.copytree(small_people, tmp_path / "people")
    for name in ("0001_c1s1_000099_00.jpg", "0001_c2s1_000099_00.jpg"):
        shutil.copy(next((home / "query").glob("*.jpg")), home / "query" / name)
    args = alignedreid.make_parser().parse_args([*SMALL, "--root", str(home)])
    line = f"warning: '{home}': 1 query identity is also in bounding_box_train\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_dataset(args)
        assert capsys.readouterr().out == line
        assert read_domains([f"synthetic={home}"], home) == [data]
    assert capsys.readouterr().out == line


def test_a_whole_set_and_its_partial_one_are_two(small_people, tmp_path):
    shutil.copytree(small_people, tmp_path / "synthetic")
    make_partial_queries(tmp_path / "synthetic", tmp_path / "synthetic_partial")
    names = ["synthetic", "synthetic_partial"]
    whole, part = read_domains(names, tmp_path)
    assert [whole.name, part.name] == names
    assert read_domains(names[1:], tmp_path, trained_on=whole) == [part]
    with pytest.raises(ValueError, match="leads to the images of synthetic in .*query"):
        read_domains(["synthetic", f"dukemtmcreid={tmp_path / 'synthetic'}"], tmp_path)


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
