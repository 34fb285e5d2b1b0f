"""Images through a cache and bad images, in whole runs: the same results, one line, or a run without them."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.checks import read_log, scores
from tests.train.conftest import SMALL, runner
from tests.train.test_processes import in_two
from train import alignedreid, domains, images, mudeep, processes
from train.data import ImageCache, cache, load_dataset
from train.images import describe_skipped, open_images

TRAINING = ["--labelsmooth", "--eval-step", 1]


def run(root, folder, *flags):
    return runner(alignedreid, SMALL, root)(folder, *flags)


def pick(root, folder, count=3):
    return sorted((root / folder).glob("0*.jpg"))[:count]  # no junk


@pytest.fixture
def people(small_people, tmp_path):
    """A copy to do damage to."""
    return Path(shutil.copytree(small_people, tmp_path / "people"))


def spoil(root):
    """Damage a few images of every subset, among them all of one person's; the files."""
    person = sorted((root / "bounding_box_train").glob("0003_*"))
    train, query, gallery = (pick(root, folder) for folder in ("bounding_box_train", "query", "bounding_box_test"))
    for path in (*person, train[0], query[1]):
        path.write_bytes(path.read_bytes()[:-30])
    gallery[2].write_bytes(b"")
    train = [str(path) for path in [train[0], *person]]
    return {"train": train, "query": [str(query[1])], "gallery": [str(gallery[2])]}


def test_a_run_with_a_cache_is_the_run_without(trained, small_people, tmp_path):
    expected = read_log(trained[0])[:1]
    run(small_people, tmp_path / "run", "--max-epoch", 1, "--cache", tmp_path / "cache", *TRAINING)
    assert read_log(tmp_path / "run") == expected
    assert len(list((tmp_path / "cache").glob("*.images"))) == 3
    cached = run(small_people, tmp_path, "--evaluate", "--resume", trained[0] / "last.pth", "--cache",
                 tmp_path / "cache", "--test-distance", "all", "--reranking")  # fmt: skip
    assert scores(cached["rows"]) == scores(trained[1]["rows"]) and cached["skipped"] == {}
    assert len(list((tmp_path / "cache").glob("*.images"))) == 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [(), ("--cache", "ram")])
def test_a_bad_image_ends_the_run_in_one_line(people, tmp_path, capsys, workers, cached):
    for path in (people / "bounding_box_train").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    argv = [*SMALL, "--root", str(people), "--save-dir", str(tmp_path / "run"), "-j", str(workers)]
    with pytest.raises(SystemExit) as caught:
        alignedreid.main([*argv, *cached])
    assert caught.value.code == 2
    *_, before, error = ["", *capsys.readouterr().err.strip().splitlines()]
    assert re.fullmatch(
        rf"error: cannot read the image '{people}/bounding_box_train/\S+jpg': image file is truncated \(\d+ bytes not "
        r"processed\); put a whole file in its place, or leave it out: --on-bad-image skip",
        error.split("\r")[-1],
    )
    assert "Traceback" not in before


def test_a_cache_without_a_place_is_one_line(small_people, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place, words in (("", "should be ram or a folder, got ''"), ("file/sub", "'file' is a file")):
        with pytest.raises(SystemExit) as caught:
            alignedreid.main(
                [*SMALL, "--root", str(small_people), "--save-dir", str(tmp_path / "run"), "--cache", place]
            )
        assert caught.value.code == 2
        assert re.fullmatch(rf"error: the cache .*{words}.*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("**/*.images"))


def test_a_disk_that_fills_up_is_one_line(small_people, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "open", full, raising=False)  # in a process that decodes
    argv = [*SMALL, "--root", str(small_people), "--save-dir", str(tmp_path / "run"), "-j", "1"]
    with pytest.raises(SystemExit) as caught:
        alignedreid.main([*argv, "--cache", str(tmp_path / "cache")])
    assert caught.value.code == 2
    assert re.fullmatch(
        rf"error: cannot write the cache '{tmp_path}/cache/\w+\.images': No space left on device: give a folder on "
        r"another disk, or --cache off",
        capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1],
    )


def test_nobody_left_to_train_on_is_one_line(people, tmp_path, capsys):
    folder = people / "bounding_box_train"
    for path in folder.iterdir():
        path.write_bytes(b"")
    argv = [*SMALL, "--root", str(people), "--save-dir", str(tmp_path / "run"), "--on-bad-image", "skip"]
    with pytest.raises(SystemExit) as caught:
        alignedreid.main(argv)
    assert caught.value.code == 2
    assert re.fullmatch(
        rf"error: synthetic, without {len(list(folder.iterdir()))} train images that cannot be read, has 0 people to "
        r"train on, and a batch takes \d+: give it more \(whole\) training images, or a smaller --train-batch",
        capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1],
    )


def test_a_missing_image_of_the_gallery_is_one_line(trained, people, tmp_path, capsys, monkeypatch):
    dataset = load_dataset("synthetic", people)
    gone = pick(people, "bounding_box_test")[0]
    gone.unlink()
    monkeypatch.setattr(domains, "read_dataset", lambda _: dataset)
    argv = [*SMALL, "--save-dir", str(tmp_path), "-j", "1", "--evaluate", "--resume", str(trained[0] / "last.pth")]
    with pytest.raises(SystemExit) as caught:
        alignedreid.main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1]
    assert error.startswith(f"error: cannot read the image '{gone}': there is no such file; put ")


def test_skipping_is_a_run_without_the_files_and_resumes_exactly(people, tmp_path, capsys):
    skipped = spoil(people)
    skip = ["--on-bad-image", "skip", "--labelsmooth"]
    run(people, tmp_path / "skip", "--max-epoch", 1, *skip)
    out = capsys.readouterr().out
    for path in sum(skipped.values(), []):
        assert len(re.findall(rf"^warning: cannot read the image '{path}': .*: it is left out$", out, re.M)) == 1
    ours = run(people, tmp_path / "skip", "--max-epoch", 2, *skip, "--resume", tmp_path / "skip" / "last.pth")
    assert ours["skipped"] == {"synthetic": {name: sorted(paths) for name, paths in skipped.items()}}
    words = f"{len(skipped['train'])} train and 1 query and 1 gallery images that cannot be read"
    assert f"\nwithout {words}\n" in capsys.readouterr().out

    for path in sum(skipped.values(), []):
        Path(path).unlink()
    theirs = run(people, tmp_path / "without", "--max-epoch", 2, "--labelsmooth")
    assert ours["rows"] == theirs["rows"] and theirs["skipped"] == {}
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("skip", "without")]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    states = [torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("skip", "without")]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_left_out(people, tmp_path, cached):
    """Samples keep their identities and cameras; what is not read in testing is not looked at."""
    skipped = spoil(people)
    flags = ["--on-bad-image", "skip", *(["--cache", str(tmp_path / "cache")] if cached else [])]
    args = alignedreid.make_parser().parse_args([*SMALL, *flags])
    whole = load_dataset("synthetic", people)
    for _ in range(1 + cached):
        left, (test,) = open_images(args, whole, [whole])
        assert test is left and isinstance(left.read, ImageCache) is cached
        bad = set(sum(skipped.values(), []))
        assert left.query == [sample for sample in whole.query if sample.path not in bad]
        assert left.gallery == [sample for sample in whole.gallery if sample.path not in bad]
        assert [sample.path for sample in left.train] == [one.path for one in whole.train if one.path not in bad]
        assert {sample.identity for sample in left.train} == set(range(whole.num_train_identities - 1))
    args = mudeep.make_parser().parse_args(["--use-cpu", "-j", "0", "--evaluate", "x.pkl", *flags])
    left, (test,) = open_images(args, whole, [whole])
    assert test is left and left.train == whole.train and set(left.skipped) == {"query", "gallery"}
    nothing, (test,) = open_images(args, None, [whole])
    assert nothing is None and describe_skipped(test) == "1 query and 1 gallery images that cannot be read"


def test_too_little_left_is_said(people):
    for path in (people / "query").iterdir():
        path.write_bytes(b"")
    args = alignedreid.make_parser().parse_args([*SMALL, "--on-bad-image", "skip"])
    dataset = load_dataset("synthetic", people)
    with pytest.raises(ValueError, match="synthetic has no query images"):
        open_images(args, dataset, [dataset])


def test_nothing_is_read_before_it_is_needed(small_people, monkeypatch):
    monkeypatch.setattr(images, "find_bad", None)
    args = alignedreid.make_parser().parse_args(SMALL)
    dataset = load_dataset("synthetic", small_people)
    assert open_images(args, dataset, [dataset]) == (dataset, [dataset])


def _open(rank, folder):
    fill, filled = ImageCache._fill, []
    ImageCache._fill = lambda self, paths, *rest: filled.append(paths) or fill(self, paths, *rest)
    root = Path((folder / "root").read_text())
    for cached in (["--cache", str(folder / "cache")], []):
        args = mudeep.make_parser().parse_args(["--use-cpu", "-j", "0", "--on-bad-image", "skip", *cached])
        dataset = load_dataset("synthetic", root)
        left, _ = open_images(args, dataset, [dataset])
        assert sum(map(len, left.skipped.values())) == len(dataset.train) - len(left.train) + 2
        (folder / f"{rank}{bool(cached)}.txt").write_text(repr((left.train, left.query, left.gallery)))
    assert len(filled) == (3 if rank == 0 else 0)
    assert processes.merge({rank: "bad"}) == {0: "bad", 1: "bad"}


def test_processes_agree_and_decode_once(people, tmp_path):
    spoil(people)
    (tmp_path / "root").write_text(str(people))
    in_two(_open, tmp_path)
    found = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert len(found) == 4 and len(set(found)) == 1
