"""The partial query set."""

import json
import os
import re
import shutil
import signal
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.data import load_dataset, make_partial_queries
from train.data import partial as partial_set
from train.data.files import resumed_folder


def snapshot(folder):
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(samples):
    return [(os.path.basename(sample.path), sample.identity, sample.camera) for sample in samples]


@pytest.fixture
def gradient(tmp_path, make_images):
    """A set whose queries tell their rows: grey value = row."""
    home = make_images(tmp_path / "whole", "bounding_box_train/0001_c1s1_000001_00.png",
                       "bounding_box_test/0002_c2s1_000001_00.png")  # fmt: skip
    (home / "query").mkdir()
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(20, axis=1)
    for number in range(40):
        Image.fromarray(rows).save(home / "query" / f"0002_c1s1_{number:06d}_00.png")
    return home


def test_loads_as_a_partial_set(synthetic, tmp_path):
    before = snapshot(synthetic)
    target = make_partial_queries(synthetic, tmp_path / "synthetic_partial")
    whole, part = load_dataset("synthetic", synthetic), load_dataset("synthetic_partial", tmp_path)
    assert target == tmp_path / "synthetic_partial" and part.name == "synthetic_partial"
    assert load_dataset("synthetic_partial", target) == part
    for subset in ("train", "query", "gallery"):
        assert names(getattr(whole, subset)) == names(getattr(part, subset))
    changed = [Image.open(a.path).tobytes() != Image.open(b.path).tobytes()
               for a, b in zip(whole.query, part.query, strict=True)]  # fmt: skip
    assert all(changed)
    assert snapshot(synthetic) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["synthetic_partial"]  # nothing left over


def test_keeps_60_to_90_percent_at_any_place(gradient, tmp_path):
    target = make_partial_queries(gradient, tmp_path / "part")
    kept, tops = [], []
    for path in (target / "query").iterdir():
        image = np.asarray(Image.open(path))
        assert image.shape == (200, 20, 3)
        top, bottom = int(image[0, 0, 0]), int(image[-1, 0, 0])
        assert (np.diff(image[:, 0, 0].astype(int)) >= 0).all()
        kept.append((bottom - top + 1) / 200)
        tops.append(top / (200 - (bottom - top)))
    assert 0.58 <= min(kept) < 0.67 and 0.83 < max(kept) <= 0.91
    assert min(tops) < 0.1 and max(tops) > 0.2


def test_ratios_and_seed_decide(gradient, tmp_path):
    one = files(make_partial_queries(gradient, tmp_path / "one") / "query")
    assert files(make_partial_queries(gradient, tmp_path / "again") / "query") == one
    assert files(make_partial_queries(gradient, tmp_path / "other", seed=1) / "query") != one
    half = make_partial_queries(gradient, tmp_path / "half", min_ratio=0.5, max_ratio=0.5) / "query"
    for path in half.iterdir():
        image = np.asarray(Image.open(path)).astype(int)
        assert abs(image[-1, 0, 0] - image[0, 0, 0] - 99) <= 1


def test_links_are_relative_and_survive_a_move(gradient, tmp_path):
    make_partial_queries(gradient, tmp_path / "part")
    link = tmp_path / "part" / "bounding_box_train"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))
    assert len(load_dataset("market1501_partial", moved / "part").gallery) == 1


@pytest.fixture
def no_links(monkeypatch):
    """A file system without links."""

    def refuse(*_, **__):
        raise OSError("links are not supported here")

    monkeypatch.setattr(Path, "symlink_to", refuse)


@pytest.mark.usefixtures("no_links")
def test_copies_where_there_are_no_links(gradient, tmp_path):
    target = make_partial_queries(gradient, tmp_path / "part")
    for folder in ("bounding_box_train", "bounding_box_test"):
        assert not (target / folder).is_symlink()
        assert files(target / folder) == files(gradient / folder)


def test_made_once_and_again_when_the_source_changes(gradient, tmp_path):
    target = make_partial_queries(gradient, tmp_path / "part")
    before = snapshot(target)
    make_partial_queries(gradient, tmp_path / "part")
    assert snapshot(target) == before
    Image.new("RGB", (20, 200)).save(gradient / "query" / "0002_c3s1_000000_00.png")
    make_partial_queries(gradient, tmp_path / "part")
    assert len(list((target / "query").iterdir())) == 41
    assert json.loads((target / "partial.json").read_text())["queries"] == 41


def test_a_damaged_set_is_made_again(gradient, tmp_path):
    target = make_partial_queries(gradient, tmp_path / "part")
    before, one = files(target / "query"), target / "query" / "0002_c1s1_000007_00.png"
    for damage in (one.unlink, lambda: one.write_bytes(b""), (target / "bounding_box_test").unlink):
        damage()
        make_partial_queries(gradient, target)
        assert files(target / "query") == before
        assert files(target / "bounding_box_test") == files(gradient / "bounding_box_test")


@pytest.mark.usefixtures("no_links")
def test_damaged_copies_are_made_again(gradient, tmp_path):
    target = make_partial_queries(gradient, tmp_path / "part")
    (copy,) = (target / "bounding_box_train").iterdir()
    copy.write_bytes(b"")
    make_partial_queries(gradient, target)
    assert files(target / "bounding_box_train") == files(gradient / "bounding_box_train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_leaves_what_was_there(gradient, tmp_path, workers):
    target = make_partial_queries(gradient, tmp_path / "part")
    before = snapshot(target)
    broken = gradient / "query" / "0009_c1s1_000000_00.png"
    broken.write_bytes(b"this is no image")
    with pytest.raises(OSError, match=r"^cannot read the image '.*0009_c1s1_000000_00.png'"):
        make_partial_queries(gradient, target, workers=workers)
    assert snapshot(target) == before
    broken.unlink()
    make_partial_queries(gradient, target, seed=1)  # what the failed run began is another set's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", "whole"]
    expected = make_partial_queries(gradient, tmp_path / "other", seed=1)
    assert files(target / "query") == files(expected / "query")


def test_bytes_do_not_depend_on_workers(synthetic, tmp_path):
    one = make_partial_queries(synthetic, tmp_path / "one")
    torch_state = torch.get_rng_state()
    for workers in (1, 2):
        many = make_partial_queries(synthetic, tmp_path / f"by{workers}", workers=workers)
        assert snapshot(many)[Path("partial.json")][0] == snapshot(one)[Path("partial.json")][0]
        assert files(many / "query") == files(one / "query")
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_is_gone_on_with(gradient, tmp_path, monkeypatch, workers):
    expected = files(make_partial_queries(gradient, tmp_path / "whole_run") / "query")
    cut, seen = partial_set._cut, []

    def cut_some(*arguments):
        seen.append(arguments)
        if len(seen) == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return cut(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(partial_set, "_cut", cut_some)
        run = partial(make_partial_queries, gradient, tmp_path / "part", workers=workers)
        if workers:  # one of them is killed, and the run says so
            with pytest.raises(RuntimeError, match="exited unexpectedly"):
                run()
        else:
            process = get_context("fork").Process(target=run)
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "part").exists()
    begun = tmp_path / ".part.part" / "new" / "query"
    done = {path: path.stat().st_mtime_ns for path in sorted(begun.glob("*.png"))}
    assert 14 <= len(done) < 40
    half, *others = done
    half.write_bytes(half.read_bytes()[:-30])  # as a power cut may leave it
    (begun / f"{half.name}.99.part").write_bytes(b"half of")
    calls = []
    monkeypatch.setattr(partial_set, "_cut", lambda *arguments: calls.append(1) or cut(*arguments))
    target = make_partial_queries(gradient, tmp_path / "part")
    assert files(target / "query") == expected
    assert len(calls) == 40 - len(others)
    assert all((target / "query" / path.name).stat().st_mtime_ns == done[path] for path in others)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", "whole", "whole_run"]
    assert len(load_dataset("market1501_partial", target).gallery) == 1


def test_interrupted_before_the_stamp(gradient, tmp_path, monkeypatch):
    expected = files(make_partial_queries(gradient, tmp_path / "other") / "query")
    with monkeypatch.context() as patch:
        patch.setattr(partial_set, "write_stamp", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_partial_queries(gradient, tmp_path / "part")
    assert (tmp_path / ".part.part" / "new" / "bounding_box_test").is_symlink()
    assert files(make_partial_queries(gradient, tmp_path / "part") / "query") == expected


def test_interrupted_while_it_takes_the_place_of_another(gradient, tmp_path, monkeypatch):
    expected = files(make_partial_queries(gradient, tmp_path / "other") / "query")
    target = make_partial_queries(gradient, tmp_path / "part", seed=1)
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: interrupt() if Path(a).name == "new" else replace(a, b))
        with pytest.raises(KeyboardInterrupt):
            make_partial_queries(gradient, target)
    assert not target.exists()  # what was there is out of the way, and the new one not yet there
    target.mkdir()  # an empty folder is nobody's, and gives way
    assert files(make_partial_queries(gradient, target) / "query") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "part", "whole"]


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_two_runs_do_not_fill_one_folder(tmp_path):
    with resumed_folder(tmp_path / "part", "stamp.json", {"seed": 0}):
        other = get_context("fork").Pool(1)
        with other, pytest.raises(FileExistsError, match=r"\.part\.part' is being filled by another process"):
            other.apply(_enter, (tmp_path / "part",))


def _enter(target):
    with resumed_folder(target, "stamp.json", {"seed": 0}):
        pass


def test_refusals(gradient, tmp_path):
    for low, high in ((0, 0.9), (0.9, 0.6), (0.6, 1.1)):
        with pytest.raises(ValueError, match=f"got {low} and {high}"):
            make_partial_queries(gradient, tmp_path / "part", min_ratio=low, max_ratio=high)
    with pytest.raises(ValueError, match="target_root should lie outside the source"):
        make_partial_queries(gradient, gradient)
    with pytest.raises(ValueError, match="target_root should lie outside the source"):
        make_partial_queries(gradient, gradient / "query" / "part")
    with pytest.raises(ValueError, match="workers should be at least 0, got -1"):
        make_partial_queries(gradient, tmp_path / "part", workers=-1)
    (tmp_path / "MSMT17_V1" / "train").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match="MSMT17_V1' lacks the folder bounding_box_train/: a partial set is made"
    ):
        make_partial_queries(tmp_path / "MSMT17_V1", tmp_path / "part")
    with pytest.raises(FileNotFoundError, match="no data set at"):
        make_partial_queries(tmp_path / "nowhere", tmp_path / "part")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="was not made here"):
        make_partial_queries(gradient, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"work.txt": b"keep me"}


def test_a_target_that_holds_the_source_is_refused(gradient, tmp_path):
    """It would be replaced as a whole, and the source with it."""
    target = make_partial_queries(gradient, tmp_path / "p")
    inside = shutil.copytree(gradient, target / "kill" / "whole")
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in ("query", "bounding_box_train", "bounding_box_test"):
        (linked / folder).symlink_to(inside / folder)
    before = snapshot(tmp_path)
    for source in (inside, linked):
        with pytest.raises(ValueError, match="target_root should not hold the source, got '.*/p', which holds '"):
            make_partial_queries(source, target, seed=1)
    assert snapshot(tmp_path) == before


def test_a_partial_set_is_no_source(gradient, tmp_path):
    part = make_partial_queries(gradient, tmp_path / "part")
    with pytest.raises(ValueError, match="source_root should hold whole queries, got the partial set '.*part'"):
        make_partial_queries(part, tmp_path / "parts_of_parts")
    assert not (tmp_path / "parts_of_parts").exists()


@pytest.mark.parametrize("name", ["market1501", "dukemtmcreid", "cuhk03np_detected", "synthetic"])
def test_a_partial_set_is_not_the_whole_one(gradient, tmp_path, monkeypatch, name):
    stamped = make_partial_queries(gradient, tmp_path / "people")
    named = shutil.copytree(gradient, tmp_path / "Partial")
    for folder in (stamped, named):
        with pytest.raises(ValueError, match=f"the folder for {name} should hold whole queries, .*-d .*_partial"):
            load_dataset(name, folder)
    monkeypatch.chdir(named)
    with pytest.raises(ValueError, match="should hold whole queries"):
        load_dataset(name, ".")
    assert len(load_dataset("market1501_partial", ".").query) == 40
    assert load_dataset(name, gradient).query


def test_a_file_name_that_is_not_utf8(gradient, tmp_path):
    odd = os.fsencode(gradient / "query") + b"/0005_c1s1_000000_\xe9.png"
    with open(odd, "wb") as file:
        file.write((gradient / "query" / "0002_c1s1_000000_00.png").read_bytes())
    target = make_partial_queries(gradient, tmp_path / "part")
    assert os.path.exists(os.fsencode(target / "query") + b"/0005_c1s1_000000_\xe9.png")
    before = snapshot(target)
    assert snapshot(make_partial_queries(gradient, target)) == before


def test_a_query_edited_at_the_same_size_is_cut_again(gradient, tmp_path):
    def paint(value):
        path = gradient / "query" / "0002_c1s1_000000_00.bmp"
        Image.new("RGB", (20, 200), (value, 0, 0)).save(path)
        return path.stat().st_size

    sizes = [paint(10)]
    make_partial_queries(gradient, tmp_path / "part")
    sizes.append(paint(99))
    target = make_partial_queries(gradient, tmp_path / "part")
    assert sizes[0] == sizes[1]
    with Image.open(target / "query" / "0002_c1s1_000000_00.bmp") as image:
        assert image.getpixel((0, 0)) == (99, 0, 0)


def test_the_whole_set_is_not_a_partial_one(gradient):
    with pytest.raises(FileNotFoundError, match="it holds whole queries; make it with python -m train.data.partial"):
        load_dataset("market1501_partial", gradient)


def run_program(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["partial", *map(str, flags)])
    partial_set.main()


def test_program_prints_what_it_made(gradient, tmp_path, monkeypatch, capsys):
    run_program(monkeypatch, "--source", gradient, "--target", tmp_path / "part", "--workers", 2)
    printed = capsys.readouterr().out
    assert "query   |      1 |       40" in printed and f"in {tmp_path / 'part'}" in printed


@pytest.mark.parametrize(("name", "place"), [
    ("market1501", "market1501"), ("market1501", "market1501/Market-1501-v15.09.15"),
    ("dukemtmcreid", "dukemtmc-reid/DukeMTMC-reID"),
])  # fmt: skip
def test_program_finds_a_data_set_by_its_name(gradient, tmp_path, monkeypatch, capsys, name, place):
    home = tmp_path / "data" / place
    home.parent.mkdir(parents=True)
    gradient.rename(home)
    run_program(monkeypatch, "--dataset", name, "--root", tmp_path / "data", "--workers", 0)
    printed = capsys.readouterr().out
    assert f"in {tmp_path / 'data' / name}_partial" in printed
    assert f"warning: not the official counts of {name}_partial: train has 1 ids" in printed
    assert len(load_dataset(f"{name}_partial", tmp_path / "data").query) == 40
    run_program(monkeypatch, "--dataset", name, "--root", home, "--workers", 0)
    assert f"in {home.parent / name}_partial" in capsys.readouterr().out


def test_program_reports_errors_in_a_line(gradient, tmp_path, monkeypatch, capsys):
    broken = gradient / "query" / "0009_c1s1_000000_00.png"
    for target, message in (
        (gradient, "error: target_root should lie outside the source"),
        (tmp_path / "part", f"error: cannot read the image '{broken}': it is no image, .*; put a whole file in its"),
    ):
        broken.write_bytes(b"this is no image")
        with pytest.raises(SystemExit) as caught:
            run_program(monkeypatch, "--source", gradient, "--target", target, "--workers", 1)
        assert caught.value.code == 2
        assert re.match(message, capsys.readouterr().err.splitlines()[-1])
    broken.unlink()
    run_program(monkeypatch, "--source", gradient, "--target", tmp_path / "part", "--workers", 1)  # as it says
    monkeypatch.setattr(partial_set, "make_partial_queries", interrupt)
    with pytest.raises(SystemExit) as caught:
        run_program(monkeypatch, "--source", gradient, "--target", tmp_path / "part")
    assert caught.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted: the same command goes on where this one stopped\n")
    for flags, message in ((["--source", gradient], "--source needs --target"), ([], "one of the arguments"),
                           (["--dataset", "msmt17"], "invalid choice: 'msmt17'")):  # fmt: skip
        with pytest.raises(SystemExit):
            run_program(monkeypatch, *flags)
        assert message in capsys.readouterr().err
