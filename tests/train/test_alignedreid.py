"""The training script from end to end on a few people, and on real images."""

import json

import pytest
import torch

from reidops_models import AlignedReID
from tests.train.checks import assert_picture, assert_table
from train import alignedreid
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
    again = run_small(tmp_path, "--evaluate", "--resume", folder / "last.pth", *flags)
    assert again["rows"] == results["rows"]
    assert again["training"] is None


def test_saved_features_repeat_the_table(trained):
    folder, results = trained
    assert evaluate_file(["--features", str(folder / "features.npz")])["rows"] == results["rows"]


def test_published_flags_and_defaults():
    args = alignedreid.make_parser().parse_args([])
    published = {
        "dataset": "market1501", "root": "data", "workers": 4, "height": 256, "width": 128, "arch": "resnet50",
        "labelsmooth": False, "optim": "adam", "max_epoch": 300, "train_batch": 32, "test_batch": 32, "lr": 0.0002,
        "stepsize": 150, "gamma": 0.1, "weight_decay": 5e-4, "margin": 0.3, "num_instances": 4, "htri_only": False,
        "print_freq": 10, "seed": 1, "evaluate": False, "eval_step": -1, "start_eval": 0, "save_dir": "log",
        "use_cpu": False, "gpu_devices": "0", "reranking": False, "test_distance": "global", "unaligned": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    args = alignedreid.make_parser().parse_args(["--use_cpu", "--test_distance", "global_local", "--amp"])
    assert (args.use_cpu, args.test_distance, args.amp) == (True, "global_local", "auto")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--train-fraction", "0.5"], "takes no options, got train_fraction"),
        (["--evaluate"], "--evaluate needs the model's checkpoint in --resume"),
        (["--evaluate", "--resume", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU"),
        (["--train-batch", "7"], "multiple of num_instances"),
        (["--lr", "1e30"], "training has diverged; lower --lr"),
    ],
)
def test_bad_input_ends_in_one_line(small_people, tmp_path, capsys, flags, message):
    argv = ["-d", "synthetic", "--root", str(small_people), "-a", "resnet18", "--height", "64", "--width", "32",
            "-j", "0", "--train-batch", "8", "--use-cpu", "--save-dir", str(tmp_path), *flags]  # fmt: skip
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
