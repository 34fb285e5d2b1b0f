"""The training script from end to end on a few people, and on real images."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
from PIL import Image

from reidops_models import AlignedReID, load_checkpoint
from tests.train.checks import assert_picture, assert_table, scores
from tests.train.conftest import SMALL
from tests.train.data.cuhk03_files import draw_images
from train import alignedreid, script
from train.data import Sample, load_dataset, write_synthetic
from train.evaluate import main as evaluate_file


def test_a_run_writes_everything(trained):
    folder, results = trained
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["dataset"] == "synthetic"
    assert_table(results["rows"])
    assert results["training"]["epochs"] == 2
    for name in ("alignment", "ranked", "curves"):
        assert_picture(folder / f"{name}.png")
    assert list(folder.glob("**/*.part")) == []

    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2]
    assert history[1]["rank1"] == results["rows"][0]["rank1"]
    assert history[1]["mAP"] == results["rows"][0]["mAP"]
    best = max(line["rank1"] for line in history)
    assert results["training"]["best_rank1"] == best
    saved = torch.load(folder / "best.pth", weights_only=True)
    assert (saved["rank1"], saved["epoch"]) == (best, results["training"]["best_epoch"])


def test_tensorboard_has_the_log(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, _ = trained
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in history])


def test_evaluating_the_checkpoint_repeats_the_table(trained, run_small, tmp_path):
    folder, results = trained
    flags = ["--test-distance", "all", "--reranking"]
    for name in ("results.json", "curves.png"):
        (tmp_path / name).write_text("of the training")
    again = run_small(tmp_path, "--evaluate", "--resume", folder / "last.pth", *flags, "--pictures")
    assert scores(again["rows"]) == scores(results["rows"])
    assert {row["trained_on"] for row in again["rows"] + results["rows"]} == {"synthetic"}
    assert again["training"] is None
    assert json.loads((tmp_path / "results_test.json").read_text()) == again
    for name in ("alignment", "ranked", "curves_test"):
        assert_picture(tmp_path / f"{name}.png")
    for name in ("results.json", "curves.png"):
        assert (tmp_path / name).read_text() == "of the training"


@pytest.mark.parametrize("name", ["last.pth", "best.pth"])
def test_evaluating_with_another_shape_than_trained_with_is_refused(trained, run_small, tmp_path, name):
    flags = ["--last-stride", 1, "--height", 128, "--width", 64, "-a", "resnet34"]
    with pytest.raises(ValueError) as caught:
        run_small(tmp_path, "--evaluate", "--resume", trained[0] / name, *flags)
    assert "trained with --arch resnet18 --last-stride 2 --height 64 --width 32, and this run" in str(caught.value)
    assert "has --arch resnet34 --last-stride 1 --height 128 --width 64" in str(caught.value)


def test_a_file_that_tells_no_settings_passes(trained, run_small, tmp_path):
    weights = torch.load(trained[0] / "last.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, tmp_path / "published.pth")
    assert run_small(tmp_path, "--evaluate", "--resume", tmp_path / "published.pth", "--last-stride", 1)["rows"]


def test_reranking_takes_its_flags(trained, run_small, tmp_path):
    flags = ["--evaluate", "--resume", trained[0] / "last.pth", "--reranking"]
    default = run_small(tmp_path, *flags, "--k1", 20, "--k2", 6, "--lambda", 0.3)["rows"]
    assert scores(default) == scores(trained[1]["rows"][:2])
    assert run_small(tmp_path, *flags, "--lambda", 1)["rows"][1]["mAP"] == pytest.approx(default[0]["mAP"])
    with pytest.raises(ValueError, match="--reranking with --k1 30 needs more than 30 images"):
        run_small(tmp_path, *flags, "--k1", 30)


def no_training(*_):
    raise AssertionError("training was begun")


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"query": []}, [], "synthetic has no query images"),
        ({"gallery": []}, [], "synthetic has no gallery images"),
        ({"query": [Sample("q.png", 999, 1)]}, [], "no query of synthetic is in the gallery under another camera"),
        ({}, ["--reranking", "--k1", 30], "--k1 30 needs more than 30 images, query and gallery together"),
        ({}, ["--lambda", 2], "--lambda should be between 0 and 1"),
        ({}, ["--train-batch", 2], "--train-batch 2 with --num-instances 2"),
    ],
)
def test_what_cannot_be_evaluated_is_not_trained(small_people, tmp_path, monkeypatch, change, flags, message):
    monkeypatch.setattr(alignedreid, "train", no_training)
    dataset = replace(load_dataset("synthetic", small_people), **change)
    argv = [*SMALL, "--save-dir", str(tmp_path), *map(str, flags)]
    with pytest.raises(ValueError, match=message):
        alignedreid.run(alignedreid.make_parser().parse_args(argv), dataset)


def test_features_that_cannot_be_saved_are_known_before_training(run_small, tmp_path, monkeypatch):
    monkeypatch.setattr(alignedreid, "train", no_training)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_small(tmp_path / "run", "--save-features", tmp_path / "file" / "features.npz")
    with pytest.raises(ValueError, match="--save-features should name a file, got the folder"):
        run_small(tmp_path / "run", "--save-features", tmp_path)


def test_results_outlive_a_failed_evaluation_and_a_failed_picture(run_small, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise ValueError("not today")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="not today"):
        patch.setattr(alignedreid, "evaluate", fails)
        run_small(tmp_path, "--max-epoch", 1)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 1
    monkeypatch.setattr(alignedreid, "telling_pair", fails)
    run_small(tmp_path, "--max-epoch", 1, "--resume", tmp_path / "last.pth", "--pictures")
    assert f"warning: no {tmp_path / 'alignment.png'}: not today" in capsys.readouterr().out
    assert (tmp_path / "results.json").is_file()
    for name in ("ranked", "curves"):
        assert_picture(tmp_path / f"{name}.png")


@pytest.mark.parametrize("flag", ["--print-freq=0", "--seed=-1", "--train-batch=0", "--workers=-1", "--k1=0", "--k2=x"])
def test_numbers_out_of_range_name_their_flag(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        alignedreid.main([flag])
    assert caught.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_error_in_a_loading_process_is_one_line(small_people, tmp_path, capsys):
    root = tmp_path / "people"
    shutil.copytree(small_people, root)
    for path in (root / "bounding_box_train").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(SystemExit) as caught:
        alignedreid.main([*SMALL, "--root", str(root), "--save-dir", str(tmp_path / "run"), "-j", "1"])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "bounding_box_train" in error


def test_an_interrupted_run_says_how_to_go_on(small_people, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    argv = [*SMALL, "--root", str(small_people), "--save-dir", str(tmp_path), "--max-epoch", "1"]
    monkeypatch.setattr(alignedreid, "finish_epoch", interrupted)
    with pytest.raises(SystemExit) as caught:
        alignedreid.main(argv)
    assert caught.value.code == 130
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"interrupted: continue with --resume {tmp_path / 'last.pth'}"


def test_saved_features_repeat_the_table(trained):
    folder, results = trained
    assert evaluate_file(["--features", str(folder / "features.npz")])["rows"] == scores(results["rows"])


def test_the_single_gallery_shot_protocol(trained, run_small, tmp_path, capsys):
    """In table, JSON and picture, and as the file of features is scored by it."""
    flags = ["--evaluate", "--resume", trained[0] / "last.pth"]
    rows = run_small(tmp_path, *flags, "--use-metric-cuhk03", "--reranking", "--pictures")["rows"]
    assert [row["protocol"] for row in rows] == ["cuhk03", "cuhk03"]
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("Distance"))
    assert lines[head].split()[2] == "Protocol" and lines[head + 2].split()[2] == "cuhk03"
    file = ["--features", str(trained[0] / "features.npz"), "--test-distance", "global"]
    assert evaluate_file([*file, "--protocol", "cuhk03"])["rows"] == scores(rows)
    assert rows[0]["mAP"] == pytest.approx(rows[0]["mINP"])
    assert rows[0]["mAP"] != trained[1]["rows"][0]["mAP"]
    assert_picture(tmp_path / "curves_test.png")


def test_other_data_sets_in_the_papers_form(trained, run_small, small_people, tmp_path, capsys):
    shutil.copytree(small_people, tmp_path / "dukemtmc-reid")
    other = write_synthetic(tmp_path, train_identities=2, test_identities=5, cameras=2, height=64, width=32, seed=9)
    other.rename(tmp_path / "labelled")
    flags = ["--evaluate", "--resume", trained[0] / "last.pth", "--test-distance", "all", "--root", tmp_path]
    results = run_small(tmp_path / "out", *flags, "--test-on", "dukemtmcreid", f"cuhk03={tmp_path}/labelled")
    tables = [[row for row in results["rows"] if row["test_set"] == name] for name in ("dukemtmcreid", "cuhk03")]
    assert scores(tables[0]) == scores(row for row in trained[1]["rows"] if not row["reranking"])  # the same pictures
    assert len(tables[1]) == 4 and scores(tables[1]) != scores(tables[0])
    assert {(row["trained_on"], row["checkpoint"]) for row in results["rows"]} == {
        ("synthetic", str(trained[0] / "last.pth"))
    }
    text = capsys.readouterr().out
    assert "\ntrained on synthetic, tested on DukeMTMC-reID\nDistance" in text
    assert "\ntrained on synthetic, tested on CUHK03 detected\nDistance" in text
    table = text.strip().splitlines()[-5:]
    assert re.split(r"\s{2,}", table[0]) == ["trained on synthetic, Rank-1/mAP", "DukeMTMC-reID", "CUHK03 detected"]
    last = [rows[-1] for rows in tables]
    assert re.split(r"\s{2,}", table[-1]) == [
        "last, Global+DMLI, market1501", *(f"{100 * row['rank1']:.2f}/{100 * row['mAP']:.2f}" for row in last)
    ]  # fmt: skip


def test_a_checkpoint_on_another_data_set_says_so(trained, run_small, small_people, tmp_path, capsys):
    shutil.copytree(small_people, tmp_path / "dukemtmc-reid")
    flags = ["-d", "dukemtmcreid", "--root", tmp_path, "--evaluate", "--resume"]
    results = run_small(tmp_path / "out", *flags, trained[0] / "last.pth")
    assert "trained on synthetic, tested on DukeMTMC-reID" in capsys.readouterr().out
    assert results["rows"][0]["trained_on"] == "synthetic" and results["dataset"] == "dukemtmcreid"
    weights = torch.load(trained[0] / "last.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, tmp_path / "published.pth")
    assert run_small(tmp_path / "out", *flags, tmp_path / "published.pth")["rows"][0]["trained_on"] is None
    assert "trained on data the checkpoint does not name, tested on DukeMTMC-reID" in capsys.readouterr().out


def test_training_on_one_set_and_testing_on_another(run_small, small_people, tmp_path):
    shutil.copytree(small_people, tmp_path / "dukemtmc-reid")
    flags = ["--max-epoch", 1, "--eval-step", 1, "--use-metric-cuhk03", "--test-on", f"dukemtmcreid={tmp_path}"]
    results = run_small(tmp_path / "run", *flags)
    (row,) = results["rows"]
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert row["protocol"] == "cuhk03" and json.loads(line)["mAP"] == row["mAP"]  # the same pictures, twice
    assert (row["trained_on"], row["test_set"], row["checkpoint"]) == ("synthetic", "dukemtmcreid", None)
    assert results["dataset"] == "synthetic" and results["training"]["epochs"] == 1


def test_options_of_a_set_that_is_tested_on(trained, run_small, tmp_path, capsys):
    home = tmp_path / "cuhk03"
    home.mkdir()
    images = sorted(draw_images("labeled").items())
    (home / "images_labeled").mkdir()
    for name, pixels in images:
        Image.fromarray(pixels).save(home / "images_labeled" / name)
    split = {"train": [], "query": [], "gallery": []}
    for name, _ in images:
        split["gallery" if name < "2" else "train"].append([name, 0, 1])
    split["query"] = split["gallery"]
    (home / "splits_classic_labeled.json").write_text(json.dumps([split]))
    flags = ["--root", tmp_path, "--cuhk03-labeled", "--cuhk03-classic-split", "--evaluate", "--resume"]
    results = run_small(tmp_path / "out", *flags, trained[0] / "last.pth", "--test-on", "cuhk03")
    assert {row["test_set"] for row in results["rows"]} == {
        "cuhk03 --cuhk03-labeled --cuhk03-classic-split --split-id 0"
    }
    said = capsys.readouterr().out
    assert "note: papers score CUHK03's classic splits by --protocol cuhk03" in said
    assert "warning: not the official counts of cuhk03 --cuhk03-labeled" in said


def test_published_flags_and_defaults():
    args = alignedreid.make_parser().parse_args([])
    published = {
        "dataset": "market1501", "root": "data", "workers": 4, "height": 256, "width": 128, "arch": "resnet50",
        "labelsmooth": False, "optim": "adam", "max_epoch": 300, "train_batch": 32, "test_batch": 32, "lr": 0.0002,
        "stepsize": 150, "gamma": 0.1, "weight_decay": 5e-4, "margin": 0.3, "num_instances": 4, "htri_only": False,
        "print_freq": 10, "seed": 1, "evaluate": False, "eval_step": -1, "start_eval": 0, "save_dir": "log",
        "cuhk03_labeled": False, "cuhk03_classic_split": False, "protocol": "market1501",
        "use_cpu": False, "gpu_devices": "0", "reranking": False, "test_distance": "global", "unaligned": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    args = alignedreid.make_parser().parse_args(["--use_cpu", "--test_distance", "global_local", "--amp"])
    assert (args.use_cpu, args.test_distance, args.amp) == (True, "global_local", "auto")
    for flags in (["--use-metric-cuhk03"], ["--protocol", "cuhk03"]):
        assert alignedreid.make_parser().parse_args(flags).protocol == "cuhk03"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--train-fraction", "0.5"], "--train-fraction says nothing about synthetic: leave it out"),
        (
            ["--train-fraction", "0", "--test-on", "dukemtmcreid={root}"],
            "nothing about synthetic or dukemtmcreid",
        ),
        (["--test-on", "dukemtmcreid={root}"], "leads to the images of synthetic"),
        (["--evaluate"], "--evaluate needs the model's checkpoint in --resume"),
        (["--evaluate", "--resume", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--replace-classifier"], "--replace-classifier is said of the checkpoint in --weights: give that too"),
        (["--weights", "nowhere.pth"], "no weights at 'nowhere.pth'"),
        (["-a", "densenet121", "--last-stride", "1"], "last_stride=1 is for resnet18"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU"),
        (["--train-batch", "7"], "multiple of num_instances"),
        (["--lr", "1e30"], "training has diverged; lower --lr"),
    ],
)
def test_bad_input_ends_in_one_line(small_people, tmp_path, capsys, flags, message):
    argv = ["-d", "synthetic", "--root", str(small_people), "-a", "resnet18", "--height", "64", "--width", "32",
            "-j", "0", "--train-batch", "8", "--use-cpu", "--save-dir", str(tmp_path),
            *(flag.format(root=small_people) for flag in flags)]  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        alignedreid.main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_checkpoint_of_another_backbone_is_refused(run_small, tmp_path):
    torch.save({"state_dict": AlignedReID(8, "resnet34").state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit AlignedReID: unexpected: base.4.2"):
        run_small(tmp_path, "--evaluate", "--resume", tmp_path / "other.pth")


def test_fine_tuning_on_other_identities(run_small, tmp_path, capsys):
    path = tmp_path / "published.pth.tar"
    torch.save({"state_dict": AlignedReID(9, "resnet18").state_dict(), "rank1": 0.918, "epoch": 299}, path)
    flags = ["--max-epoch", 0, "--weights", path]
    with pytest.raises(ValueError, match="9 identities, and the model has 8 classes: .*--replace-classifier"):
        run_small(tmp_path / "run", *flags)
    assert run_small(tmp_path / "run", *flags, "--replace-classifier")["rows"]
    about = "AlignedReID on resnet18, 9 identities, epoch 300, rank-1 91.8 %"
    assert f"starts from {path}: {about}\n" in capsys.readouterr().out
    assert run_small(tmp_path / "test", "--evaluate", "--resume", path, "--stripes", "branch")["rows"]
    assert f"loaded {path}: {about}\n" in capsys.readouterr().out


def test_a_local_branch_that_a_file_lacks_is_trained(tmp_path):
    lacking = {name: x for name, x in AlignedReID(8, "resnet18").state_dict().items() if name[:2] not in ("bn", "co")}
    torch.save({"state_dict": lacking}, tmp_path / "plain.pth")
    model = AlignedReID(8, "resnet18")
    model.stripes = "branch"  # as the published ResNet-101 has it
    flags = ["--weights", str(tmp_path / "plain.pth")]
    script.start_from_weights(alignedreid.make_parser().parse_args(flags), model)
    assert model.stripes == "branch"
    load_checkpoint(model, tmp_path / "plain.pth")
    assert model.stripes == "trunk"


def test_imagenet_weights_are_not_evaluated(run_small, tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="resnet18.pth holds ImageNet weights, no trained model"):
        run_small(tmp_path, "--evaluate", "--resume", tmp_path / "resnet18.pth")
    torch.save(torchvision.models.resnet18(num_classes=751).state_dict(), tmp_path / "trained.pth")
    with pytest.raises(ValueError, match="trained.pth holds a model of another program"):
        run_small(tmp_path, "--evaluate", "--resume", tmp_path / "trained.pth")


def test_a_missing_package_is_one_line(small_people, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit):
        alignedreid.main(["-d", "synthetic", "--root", str(small_people), "-a", "inceptionv4", "--use-cpu",
                          "--save-dir", str(tmp_path)])  # fmt: skip
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: backbone 'inceptionv4' is timm's") and error.endswith("pip install timm")


def test_real_images(data_folder, monkeypatch, tmp_path):
    """One epoch on some of the vehicle images: a folder found under REIDOPS_DATA, trained on, drawn."""
    images = tmp_path / "vehicles" / "images"
    for subset, count in (("train", 24), ("test", 24)):
        (images / subset).mkdir(parents=True)
        for path in sorted((data_folder / "vehicle_reid" / "images" / subset).glob("*_cam*.jpg"))[:count]:
            (images / subset / path.name).symlink_to(path.resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REIDOPS_DATA", str(tmp_path))
    results = alignedreid.main([
        "-d", "folder", "--root", "vehicles", "-a", "resnet18", "--height", "64", "--width", "64", "-j", "0",
        "--train-batch", "8", "--num-instances", "2", "--max-epoch", "1", "--test-distance", "all", "--reranking",
        "--pictures", "--use-cpu", "--save-dir", "run", "--query-camera", "2",
    ])  # fmt: skip
    assert results["dataset"] == "folder"
    assert_table(results["rows"])
    for name in ("alignment", "ranked", "curves"):
        assert_picture(tmp_path / "run" / f"{name}.png")
