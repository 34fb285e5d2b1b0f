"""Where inputs are looked for."""

import pytest

from train.data import find_input


def test_as_named_first(tmp_path, monkeypatch):
    (tmp_path / "here" / "set").mkdir(parents=True)
    (tmp_path / "shared" / "set").mkdir(parents=True)
    (tmp_path / "shared" / "other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("REIDOPS_DATA", str(tmp_path / "shared"))
    assert find_input("set").resolve() == tmp_path / "here" / "set"
    assert find_input("other") == tmp_path / "shared" / "other"
    assert find_input(tmp_path / "here") == tmp_path / "here"


def test_missing_names_every_place(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDOPS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no features at 'nothing' or '{tmp_path}/nothing'"):
        find_input("nothing", "features")
    with pytest.raises(FileNotFoundError, match=r"no features at '/nothing/at/all'$"):
        find_input("/nothing/at/all", "features")
    monkeypatch.delenv("REIDOPS_DATA")
    with pytest.raises(FileNotFoundError, match="no input at 'nothing' .REIDOPS_DATA.* is not set"):
        find_input("nothing")
