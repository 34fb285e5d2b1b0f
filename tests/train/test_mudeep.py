"""The MuDeep_v2 script from end to end: training, resuming, testing one or many checkpoints on any data set."""

import json
import math
import re
import shutil

import pytest
import torch
import torchvision
from torch.nn import functional

from reidops_models import AlignedReID, MuDeepOutput, MuDeepV2
from tests.reidops.test_losses import trip_hard
from tests.train.checks import Killed, assert_picture, killed, read_log, scores
from tests.train.conftest import runner
from train import engine, mudeep
from train.data import load_dataset, write_synthetic
from train.features import load_features
from train.losses import MuDeepLoss

SMALL = ["-d", "synthetic", "-a", "resnet18", "--height", "64", "--width", "32", "-j", "0", "--P", "4", "--K", "2",
         "--repeats", "1", "--test-batch", "16", "--use-cpu", "--seed", "3", "--lr", "0.02",
         "--backbone-rate", "1"]  # fmt: skip
SCHEDULE = ["--max-epoch", 6, "--stepsize", 4, "--eval-step", 2, "--checkpoint-step", 2, "--name", "people"]


@pytest.fixture(scope="module")
def run_mudeep(small_people):
    """Runs train.mudeep on a few people."""
    return runner(mudeep, SMALL, small_people)


@pytest.fixture(scope="module")
def trained(run_mudeep, tmp_path_factory):
    """A run of six epochs with everything written: its folder and its results."""
    folder = tmp_path_factory.mktemp("mudeep")
    flags = [*SCHEDULE, "--pictures"]
    return folder, run_mudeep(folder, *flags, "--reranking", "--k1", 8, "--save-features", folder / "features.npz")


def test_a_run_writes_everything(trained):
    folder, results = trained
    assert json.loads((folder / "results.json").read_text()) == results
    assert [(row["protocol"], row["reranking"]) for row in results["rows"]] == [
        ("mudeep", False), ("market1501", False), ("mudeep", True), ("market1501", True)]  # fmt: skip
    assert {row["distance"] for row in results["rows"]} == {"cosine"}
    for name in ("leader", "ranked", "curves"):
        assert_picture(folder / f"{name}.png")
    assert sorted(path.name for path in folder.glob("*.pkl")) == [f"people_{n}.pkl" for n in (2, 4, 6)]
    assert list(folder.glob("**/*.part")) == []

    history = read_log(folder)
    assert [line["epoch"] for line in history if "mAP" in line] == [2, 4, 6]
    assert [line["lr"] for line in history] == pytest.approx([0.02] * 4 + [0.002] * 2)
    assert history[-1]["mAP"] == results["rows"][0]["mAP"]
    assert sum(line["loss"] for line in history[-3:]) < sum(line["loss"] for line in history[:3])
    for line in history:
        assert line["loss"] == pytest.approx(2 * line["cross_entropy"] + line["triplet"], rel=1e-5)


def test_opt_txt_reads_as_the_published_one(trained):
    folder, results = trained
    options, accuracy = (
        (folder / "opt.txt").read_text().split("-------------------------- End ----------------------------")
    )
    assert options.startswith("------------------------ Options -------------------------\n")
    assert "\nheight: 64\n" in options and "\nP: 4\n" in options
    lines = [line for line in accuracy.splitlines() if line.startswith("Epoch")]
    pattern = r"Epoch:(\d+), Rank@1:(\d\.\d{4}), Rank@5:\S+, Rank@10:\S+, Rank@15:\S+, Rank@20:\S+, mAP:(\d\.\d{4})"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [int(match[1]) for match in found] == [2, 4, 6]
    assert float(found[-1][2]) == pytest.approx(results["rows"][0]["rank1"], abs=1e-4)
    assert float(found[-1][3]) == pytest.approx(results["rows"][0]["mAP"], abs=1e-4)


def test_tensorboard_has_the_log(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(trained[0] / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mAP")] == [2, 4, 6]
    assert len(events.Scalars("triplet")) == 6


@pytest.mark.parametrize("method", ["train_epoch", "save"])
def test_a_killed_run_resumes_as_if_nothing_had_happened(run_mudeep, trained, tmp_path, method):
    with killed(method, 4):
        run_mudeep(tmp_path, *SCHEDULE)
    results = run_mudeep(tmp_path, *SCHEDULE, "--resume", tmp_path / "last.pth")

    assert read_log(tmp_path) == read_log(trained[0])
    accuracy = [(folder / "opt.txt").read_text().split("Accuracy")[1] for folder in (tmp_path, trained[0])]
    assert accuracy[0] == accuracy[1]
    assert scores(results["rows"]) == scores(trained[1]["rows"][:2])
    for name in ("last.pth", "people_6.pkl"):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, trained[0]))
        for part in ("state_dict", "optimizer", "scheduler", "epoch"):
            torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_testing_a_checkpoint_repeats_the_table(run_mudeep, trained, tmp_path):
    folder, results = trained
    again = run_mudeep(tmp_path, "--evaluate", folder / "people_6.pkl", "--reranking", "--k1", 8, "--pictures")
    assert scores(again["rows"]) == scores(results["rows"])
    assert again["training"] is None
    assert json.loads((tmp_path / "results_test.json").read_text()) == again
    for name in ("leader", "ranked", "curves_test"):
        assert_picture(tmp_path / f"{name}.png")


def test_every_checkpoint_of_a_folder_in_the_order_of_epochs(run_mudeep, trained, tmp_path):
    for name, copy in (("people_2.pkl", "people_2.pkl"), ("people_4.pkl", "people_10-again.pkl")):
        shutil.copyfile(trained[0] / name, tmp_path / copy)
    shutil.copyfile(trained[0] / "people_6.pkl", tmp_path / "renamed.pkl")  # its epoch stands inside
    (tmp_path / "notes.txt").write_text("no checkpoint")
    results = run_mudeep(tmp_path / "out", "--evaluate", tmp_path, "--protocol", "mudeep")
    assert [row["epoch"] for row in results["rows"]] == [2, 6, 10]
    history = {line["epoch"]: line["mAP"] for line in read_log(trained[0]) if "mAP" in line}
    assert [row["mAP"] for row in results["rows"]] == [history[2], history[6], history[4]]


def test_other_data_sets_in_the_papers_form(run_mudeep, trained, small_people, tmp_path, capsys):
    for folder in ("dukemtmc-reid/DukeMTMC-reID", "cuhk03-np/detected"):
        shutil.copytree(small_people, tmp_path / folder)
    other = write_synthetic(tmp_path, train_identities=2, test_identities=5, cameras=2, height=64, width=32, seed=9)
    other.rename(tmp_path / "labelled")
    flags = [
        "--root",
        tmp_path,
        "--test-on",
        "dukemtmcreid",
        "cuhk03np_detected",
        f"cuhk03np_labeled={tmp_path}/labelled",
    ]
    results = run_mudeep(tmp_path / "out", "--evaluate", trained[0] / "people_6.pkl", "--protocol", "mudeep", *flags)
    rows = {row["test_set"]: row for row in results["rows"]}
    assert list(rows) == ["dukemtmcreid", "cuhk03np_detected", "cuhk03np_labeled"]
    for same in ("dukemtmcreid", "cuhk03np_detected"):  # the pictures it was tested on after training
        assert rows[same]["mAP"] == trained[1]["rows"][0]["mAP"]
    table = capsys.readouterr().out.strip().splitlines()[-2:]
    assert re.split(r"\s{2,}", table[0])[1:] == ["DukeMTMC-reID", "CUHK03-NP detected", "CUHK03-NP labelled"]
    first = rows["dukemtmcreid"]
    assert f"{100 * first['rank1']:.2f}/{100 * first['mAP']:.2f}" in table[1]


def test_test_features_are_averaged_over_the_mirror_image(trained, small_people):
    stored = torch.load(trained[0] / "people_6.pkl", weights_only=True)["state_dict"]
    model = MuDeepV2(8, backbone="resnet18")
    model.load_state_dict(stored)
    features = load_features(trained[0] / "features.npz")
    assert features.query.shape[1] == 12 * 512
    data = load_dataset("synthetic", small_people)
    images = mudeep.ImageDataset(data.query[:3], mudeep.test_transform(64, 32, bicubic=True))
    batch = torch.stack([image for image, *_ in images])
    with torch.no_grad():
        plain, mirrored = model.eval()(batch), model(torch.flip(batch, [3]))
    expected = functional.normalize(((plain + mirrored) / 2).reshape(3, -1), dim=1)
    torch.testing.assert_close(features.query[:3], expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_the_published_settings():
    args = mudeep.make_parser().parse_args([])
    published = {
        "dataset": "market1501", "height": 384, "width": 192, "arch": "resnet50", "num_scales": 3, "P": 12, "K": 6,
        "repeats": 3, "max_epoch": 160, "lr": 0.09, "backbone_rate": 0.1, "stepsize": 80, "gamma": 0.1,
        "weight_decay": 5e-4, "margin": 1.0, "erasing": 0.5, "eval_step": 5, "checkpoint_step": 10, "seed": 12345,
        "no_attention": False, "reranking": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    optimizer = engine.make_mudeep_optimizer(
        MuDeepV2(3, backbone="resnet18"), args.lr, args.weight_decay, args.backbone_rate
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.009, 0.09])
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)


def test_the_learning_rates_are_the_published_ones():
    model = MuDeepV2(3, backbone="resnet18")
    names = {parameter: name for name, parameter in model.named_parameters()}
    slow, fast = engine.make_mudeep_optimizer(model, 0.09, 5e-4).param_groups
    assert {names[p].split(".")[0].rstrip("123_") for p in slow["params"]} == {
        "conv",
        "layer",
        "layer4",
        "conv_all",
        "gamma",
    }
    assert {names[p].split(".")[0].rstrip("123_") for p in fast["params"]} == {"scale", "atten"}


@pytest.mark.parametrize("scales", [1, 3])
def test_the_loss_is_the_published_one(scales):
    torch.manual_seed(0)
    p, k = 4, 3
    labels = torch.arange(p).repeat_interleave(k)
    logits = tuple(torch.randn(p * k, p, dtype=torch.float64, requires_grad=True) for _ in range(4 * scales))
    features = tuple(torch.randn(p * k, 16, dtype=torch.float64, requires_grad=True) for _ in range(scales))
    losses = MuDeepLoss(margin=1.0)(MuDeepOutput(logits, features), labels)
    cross_entropy = sum(functional.cross_entropy(one, labels) for one in logits) / 4
    triplet = sum((positive - negative + 1).clamp(min=0).mean() for positive, negative in
                  (trip_hard(one, p, k) for one in features))  # fmt: skip
    torch.testing.assert_close(losses["cross_entropy"], cross_entropy)
    torch.testing.assert_close(losses["triplet"], triplet)
    torch.testing.assert_close(losses["loss"], 2 * cross_entropy + triplet)
    ours = torch.autograd.grad(losses["loss"], logits + features)
    theirs = torch.autograd.grad(2 * cross_entropy + triplet, logits + features)
    for mine, published in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, published)


def test_divergence_is_said(run_mudeep, tmp_path):
    with pytest.raises(FloatingPointError, match="training has diverged; lower --lr"):
        run_mudeep(tmp_path, "--lr", 1e30, "--max-epoch", 2)


def no_training(*_):
    raise AssertionError("training was begun")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--num-classes", "751"], "--num-classes is 751, and synthetic has 8 training identities"),
        (["--P", "9"], "--P 9 identities in a batch need as many to train on: synthetic has 8"),
        (["--evaluate", "nowhere.pkl"], "nowhere.pkl does not exist"),
        (["--evaluate", "{empty}"], r"holds no checkpoint \(\*.pkl or \*.pth\)"),
        (["--evaluate", "{other}"], "the file looks like AlignedReID, and the model is MuDeep_v2"),
        (["--evaluate", "{model}", "--height", "128"], "trained with --height 64, and this run has --height 128"),
        (["--evaluate", "{model}", "--no-attention"], r"with \(no --no-attention\), and this run has --no-attention"),
        (["--test-on", "dukemtmcreid={people}"], "leads to the images of synthetic .*: give dukemtmcreid=FOLDER"),
        (["--evaluate", "{model}", "--test-on", "dukemtmcreid"], "it is itself one: give dukemtmcreid="),
        (["--evaluate", "{model}", "--test-on", "synthetic={people}", "synthetic={people}"], "got synthetic twice"),
        (
            ["--evaluate", "{model}", "--num-classes", "751", "--test-on", "synthetic={people}"],
            "trained on 8 identities, and --num-classes says 751",
        ),
        (["--evaluate", "{models}", "--save-features", "f.npz"], "there are 3 checkpoints and 1 data sets"),
        (["--evaluate", "{model}", "--resume", "{model}"], "give one of them"),
        (["--name", "a/b"], "--name should be letters"),
        (["--gpu-devices", "0,1"], "several GPUs work through torchrun"),
        (["--evaluate", "{model}", "--test-on", "imagenet"], "name should be one of .*, got 'imagenet'"),
        (["--reranking", "--k1", "99"], "--k1 99 needs more than 99 images"),
        (["--erasing", "2"], "erasing should be a probability, got 2.0"),
        (["--resume", "{other}"], "holds no best_epoch"),
    ],
)
def test_bad_input_ends_in_one_line(trained, small_people, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(engine.Trainer, "train_epoch", no_training)
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": AlignedReID(8, "resnet18").state_dict()}, tmp_path / "other.pkl")
    places = {"empty": tmp_path / "empty", "other": tmp_path / "other.pkl", "model": trained[0] / "people_2.pkl"}
    places |= {"people": small_people, "models": trained[0]}
    argv = [
        *SMALL,
        "--root",
        str(small_people),
        "--save-dir",
        str(tmp_path / "run"),
        *(f.format(**places) for f in flags),
    ]
    with pytest.raises(SystemExit) as caught:
        mudeep.main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_resuming_with_other_identities_is_refused(run_mudeep, trained, tmp_path):
    people = write_synthetic(tmp_path, train_identities=5, test_identities=6, cameras=2, height=64, width=32, seed=5)
    with pytest.raises(ValueError, match="trained on 8 identities, and the model has 5 classes"):
        run_mudeep(tmp_path / "run", "--root", people, "--resume", trained[0] / "last.pth", "--max-epoch", 7)


def test_ablations_train(run_mudeep, tmp_path):
    results = run_mudeep(
        tmp_path, "--num-scales", 1, "--no-attention", "--max-epoch", 1, "--pictures", "--no-recompute"
    )
    assert math.isfinite(results["rows"][0]["mAP"])
    weights = torch.load(tmp_path / "last.pth", weights_only=True)["state_dict"]
    assert not any(name.startswith(("atten", "gamma", "layer4_2")) for name in weights)
    assert not (tmp_path / "leader.png").exists()


def test_flags_reach_what_they_are_for(run_mudeep, tmp_path, monkeypatch):
    """What a flag changes, looked at when training begins."""
    seen = {}

    def look(trainer, loader):
        seen["trainer"], seen["loader"] = trainer, loader
        raise Killed

    trunk = torchvision.models.resnet18(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr(engine.Trainer, "train_epoch", look)
    monkeypatch.setattr(engine, "convolves_in_bfloat16", lambda: True)
    flags = ["--repeats", 3, "--margin", 0.7, "--labelsmooth", "--stepsize", 5, "--gamma", 0.5, "--no-recompute",
             "--weights", tmp_path / "resnet18.pth", "--channels-last", "--amp", "bf16", "--erasing", 0.25]  # fmt: skip
    with pytest.raises(Killed):
        run_mudeep(tmp_path / "run", *flags)
    trainer, loader = seen["trainer"], seen["loader"]
    assert len(loader) == 3 * 8 // 4 and loader.batch_size == 8
    assert (trainer.criterion.triplet.margin, trainer.criterion.label_smoothing) == (0.7, 0.1)
    assert (trainer.scheduler.step_size, trainer.scheduler.gamma) == (5, 0.5)
    assert trainer.model.recompute is False and trainer.amp_dtype is torch.bfloat16
    assert trainer.memory_format == torch.channels_last
    assert trainer.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(trainer.model.layer4_3[1].conv2.weight, trunk.layer4[1].conv2.weight, rtol=0, atol=0)
    assert loader.dataset.transform.transforms[-1].p == 0.25


def test_files_of_others_are_left_alone(run_mudeep, tmp_path):
    """A fresh run clears away an earlier run of its own, and nothing else."""
    (tmp_path / "people_v1.pkl").write_text("somebody's")
    (tmp_path / "people_160.pkl").write_text("somebody's")
    with pytest.raises(FileExistsError, match="holds people_160.pkl, and no log.jsonl"):
        run_mudeep(tmp_path, "--name", "people", "--max-epoch", 0)
    (tmp_path / "people_160.pkl").unlink()
    run_mudeep(tmp_path, "--name", "people", "--max-epoch", 0)
    assert (tmp_path / "people_v1.pkl").read_text() == "somebody's"


def test_a_damaged_checkpoint_does_not_cost_the_others(run_mudeep, trained, tmp_path):
    shutil.copyfile(trained[0] / "people_2.pkl", tmp_path / "people_2.pkl")
    (tmp_path / "people_4.pkl").write_bytes((trained[0] / "people_4.pkl").read_bytes()[:1000])
    with pytest.raises(ValueError, match="people_4.pkl .* it is cut short: copy or download"):
        run_mudeep(tmp_path / "out", "--evaluate", tmp_path)
    rows = json.loads((tmp_path / "out" / "results_test.json").read_text())["rows"]
    assert [row["epoch"] for row in rows] == [2, 2]


def test_a_training_set_of_other_identities_is_refused(run_mudeep, trained, tmp_path):
    people = write_synthetic(tmp_path, train_identities=5, test_identities=6, cameras=2, height=64, width=32, seed=5)
    with pytest.raises(ValueError, match="trained on 8 identities, and synthetic has 5: .*--test-on"):
        run_mudeep(tmp_path / "out", "--evaluate", trained[0] / "people_2.pkl", "--root", people)
