"""The MuDeep_v2 model: the published network's numbers, what it returns, its names, its memory, batches of one."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from reidops_models import MuDeepOutput, MuDeepV2, load_checkpoint
from reidops_models.backbones import RESNETS
from reidops_models.recompute import attend
from tests.reidops_models.plain_mudeep import plain_mudeep

SMALL = {"backbone": "resnet18", "feature_dim": 32, "leader_dim": 16}


def random_model(*, dropout=0.0, seed=0, classes=7, **options):
    """A model with every tensor drawn at random, gamma and the running statistics included."""
    torch.manual_seed(seed)
    model = MuDeepV2(classes, dropout=dropout, **options).double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith("gamma") or name.endswith(("running_var", "bn.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.uniform_(-0.2, 0.2)
    return model


def relative(ours, theirs):
    """The largest difference over the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()


def compare(model, images, tolerance=1e-9):
    """Holds a model to the published way in features, logits and every gradient, in both modes."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    for name in parameters:
        state[name].requires_grad_()
    with torch.no_grad():
        features, _ = plain_mudeep(state, images)
        assert relative(model.eval()(images), torch.stack(features, dim=1)) < tolerance

    features, logits = plain_mudeep(state, images, training=True)
    output = model.train()(images)
    ours, theirs = [*output.logits, *output.global_features], [*logits, *features[::4]]
    assert len(output.global_features) == model.num_scales
    cotangents = [torch.randn_like(one) for one in theirs]
    for mine, published in zip(ours, theirs, strict=True):
        assert relative(mine, published) < tolerance
    model.zero_grad()
    sum((a * b).sum() for a, b in zip(ours, cotangents, strict=True)).backward()
    expected = torch.autograd.grad(sum((a * b).sum() for a, b in zip(theirs, cotangents, strict=True)),
                                   [state[name] for name in parameters])  # fmt: skip
    for name, gradient in zip(parameters, expected, strict=True):
        assert relative(model.get_parameter(name).grad, gradient) < 100 * tolerance, name


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("attention", [True, False])
def test_agrees_with_the_published_network(scales, attention, recompute):
    options = {"num_scales": scales, "attention": attention, "recompute": recompute}
    compare(random_model(**SMALL, **options), torch.randn(4, 3, 64, 48, dtype=torch.float64))


def test_agrees_at_full_width():
    compare(random_model(backbone="resnet50"), torch.randn(3, 3, 80, 32, dtype=torch.float64))


@pytest.mark.parametrize("height", [16, 32, 112])  # 1, 2 and 7 rows in three parts
def test_heights_that_three_does_not_divide(height):
    compare(random_model(**SMALL), torch.randn(4, 3, height, 32, dtype=torch.float64))


def test_channels_last():
    model = random_model(**SMALL).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 48, dtype=torch.float64)
    compare(model, images.to(memory_format=torch.channels_last))


def test_single_precision_is_near_double():
    model, images = random_model(backbone="resnet50"), torch.randn(2, 3, 96, 48)
    with torch.no_grad():
        expected = torch.stack(plain_mudeep(model.state_dict(), images.double())[0], dim=1)
        assert relative(model.float().eval()(images).double(), expected) < 1e-4


def test_what_comes_back():
    model = MuDeepV2(7, **SMALL)
    output = model(torch.rand(2, 3, 96, 48))
    assert isinstance(output, MuDeepOutput)
    assert [tuple(logits.shape) for logits in output.logits] == [(2, 7)] * 12
    assert [tuple(features.shape) for features in output.global_features] == [(2, 32)] * 3
    assert model.eval()(torch.rand(2, 3, 96, 48)).shape == (2, 12, 32)


def test_a_batch_of_one():
    model, image = random_model(**SMALL).float(), torch.rand(1, 3, 64, 48)
    alone, several = model.eval()(image), model(torch.cat([image, torch.rand(2, 3, 64, 48)]))
    assert alone.shape == (1, 12, 32)
    torch.testing.assert_close(alone[0], several[0])

    before = copy.deepcopy(model.state_dict())
    output = model.train()(image)
    assert output.logits[0].shape == (1, 7)
    sum(logits.square().sum() for logits in output.logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    for name, tensor in model.state_dict().items():
        if name.startswith("scale"):  # no variance over one image: the bottlenecks' statistics stay
            assert torch.equal(tensor, before[name]), name


def test_an_empty_batch():
    assert MuDeepV2(7, **SMALL).eval()(torch.rand(0, 3, 64, 48)).shape == (0, 12, 32)


def test_recomputing_changes_no_bit_and_counts_no_batch_twice():
    kept = random_model(**SMALL).float()
    again = copy.deepcopy(kept)
    kept.recompute = False
    images, labels = torch.rand(4, 3, 64, 48), torch.arange(4)
    for model in (kept, again):
        for _ in range(2):
            output = model(images)
            sum(nn.functional.cross_entropy(logits, labels) for logits in output.logits).backward()
    for (name, ours), theirs in zip(again.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(again.named_buffers(), kept.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_changing_the_mode_before_backward_changes_nothing():
    models = [random_model(**SMALL).float() for _ in range(2)]
    images = torch.rand(4, 3, 64, 48)
    losses = [sum(logits.square().sum() for logits in model(images).logits) for model in models]
    models[1].eval()
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def kept_numbers(model, images):
    """How many floating-point numbers autograd keeps for backward, each storage once."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (
            tensor.untyped_storage().nbytes() if tensor.is_floating_point() else 0
        )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    return sum(kept.values()) // 4, output


def test_no_matrix_of_channels_is_kept():
    model, images = MuDeepV2(3, backbone="resnet18", recompute=False), torch.rand(2, 3, 32, 32)
    numbers, _ = kept_numbers(model, images)
    without, _ = kept_numbers(MuDeepV2(3, backbone="resnet18", recompute=False, attention=False), images)
    attention = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("conv_all", "atten")))
    assert 0 < numbers - without - attention < 512 * 512  # the matrix of one scale of one image


def test_recomputing_keeps_less():
    images, kept = torch.rand(4, 3, 128, 64), {}
    for recompute in (False, True):
        model = MuDeepV2(3, backbone="resnet50", recompute=recompute)
        kept[recompute] = kept_numbers(model, images)[0] - sum(p.numel() for p in model.parameters())
    assert kept[True] < 0.75 * kept[False]


def test_queries_and_keys_are_not_kept_under_autocast_either():
    kept = {}
    for recompute in (False, True):
        model = MuDeepV2(3, recompute=recompute, **SMALL)
        with torch.autocast("cpu", torch.bfloat16):
            leader = torch.rand(2, 16, 300, requires_grad=True)
            weights = model.atten1.weights()
            seen = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t.shape) or t, lambda t: t):
                attend(leader, *weights, torch.rand(2, 512, 4, requires_grad=True), recompute=recompute)
        kept[recompute] = sum(shape == (2, 512, 300) for shape in seen)
    assert kept[True] == 0 < kept[False]


def test_a_parameter_changed_before_backward_is_an_error():
    for recompute in (False, True):
        model = random_model(**SMALL, recompute=recompute).float()
        loss = sum(logits.sum() for logits in model(torch.rand(4, 3, 64, 48)).logits)
        with torch.no_grad():
            model.layer1[0].conv2.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_compiles_in_one_graph():
    model = random_model(**SMALL).float().eval()
    images = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model(images))
    trained = random_model(**SMALL).float()
    compiled = torch.compile(copy.deepcopy(trained), fullgraph=True, backend="aot_eager")
    for one, two in zip(compiled(images).logits, trained(images).logits, strict=True):
        torch.testing.assert_close(one, two)


def test_every_parameter_learns():
    model = random_model(**SMALL).float()
    output = model(torch.rand(4, 3, 64, 48))
    (sum(x.square().mean() for x in output.logits) + sum(x.mean() for x in output.global_features)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_starts_as_published():
    model = MuDeepV2(751)
    assert all(model.get_parameter(f"gamma{scale}").item() == 0 for scale in (1, 2, 3))
    classifier = model.scale2_3.classifier.fc
    assert classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not classifier.bias.any()
    reduced = model.scale1.feature.conv1.weight  # Kaiming: variance 2 / fan in
    assert reduced.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.05)
    assert model.scale1.classifier.dropout.p == 0.5
    stride = {module.stride for name, module in model.named_modules() if name.startswith("layer4_") and "conv" in name}
    assert stride == {(1, 1)}


def test_parameters_carry_the_published_names():
    names = set(MuDeepV2(3).state_dict())
    assert {"conv.conv.weight", "conv.bn.running_mean", "layer1.0.conv1.weight", "layer3.5.bn3.bias",
            "layer4_1.conv1.weight", "layer4_1.downsample.0.weight", "layer4_2.1.conv3.weight", "layer4_3.2.bn1.weight",
            "conv_all.conv1.weight", "conv_all.bn1.num_batches_tracked", "atten3.feature2.conv1.weight", "gamma1",
            "scale1.feature.conv1.weight", "scale1.feature.bn.running_var",
            "scale3_3.classifier.fc.bias"} <= names  # fmt: skip
    tops = {name.split(".")[0] for name in names}
    scales = {f"scale{scale}{part}" for scale in (1, 2, 3) for part in ("", "_1", "_2", "_3")}
    numbered = {f"{word}{scale}" for word in ("layer", "layer4_", "atten", "gamma") for scale in (1, 2, 3)}
    assert tops == {"conv", "conv_all"} | scales | numbered


def published_layouts(state):
    """Files as the published program wrote them: with and without DataParallel, in the old and the new file format."""
    spread = {f"module.{name}": tensor for name, tensor in state.items()}
    extras = {"epoch": 160, "optimizer": {"state": {}, "param_groups": [{"lr": 0.09}]}}
    yield "spread.pkl", {"state_dict": spread, **extras}, True
    yield "single.pkl", {"state_dict": state, **extras}, True
    yield "old.pkl", {"state_dict": spread, **extras}, False


def test_published_checkpoints_load(tmp_path):
    source = random_model(backbone="resnet50", classes=751).float()
    for name, content, new in published_layouts(source.state_dict()):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new)
        model = load_checkpoint(MuDeepV2(751), tmp_path / name)
        for key, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), (name, key)


def test_features_from_a_published_file_are_those_of_the_published_network(tmp_path):
    source = random_model(**SMALL, classes=751).float()
    layout = {"state_dict": nn.DataParallel(source).state_dict(), "epoch": 160, "optimizer": {"state": {}}}
    torch.save(layout, tmp_path / "market_160.pkl", _use_new_zipfile_serialization=False)
    model, images = (
        load_checkpoint(MuDeepV2(751, **SMALL), tmp_path / "market_160.pkl").eval(),
        torch.rand(2, 3, 96, 48),
    )
    with torch.no_grad():
        expected, _ = plain_mudeep(source.state_dict(), images)
        torch.testing.assert_close(model(images), torch.stack(expected, dim=1), rtol=1e-5, atol=1e-5)


def test_the_classifiers_alone_are_replaced(tmp_path):
    source, model = MuDeepV2(751, **SMALL), MuDeepV2(702, **SMALL)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "market.pkl")
    before = copy.deepcopy(model.state_dict())
    load_checkpoint(model, tmp_path / "market.pkl", replace_classifier=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if ".classifier." in name else source.state_dict()[name]), name


def test_checkpoints_that_do_not_fit_say_why(tmp_path):
    source = MuDeepV2(751, **SMALL).state_dict()
    torch.save({"state_dict": source}, tmp_path / "market.pkl")
    with pytest.raises(
        ValueError, match=r"scale1.classifier.fc.weight \(751, 32\) for \(702, 32\).*751 identities.*702"
    ):
        load_checkpoint(MuDeepV2(702, **SMALL), tmp_path / "market.pkl")
    with pytest.raises(ValueError, match="unexpected: .*atten1"):
        load_checkpoint(MuDeepV2(751, attention=False, **SMALL), tmp_path / "market.pkl")
    with pytest.raises(ValueError, match="unexpected: .*layer4_3"):
        load_checkpoint(MuDeepV2(751, num_scales=2, **SMALL), tmp_path / "market.pkl")


def test_imagenet_weights_fill_every_copy_of_the_last_stage(tmp_path):
    trunk = torchvision.models.resnet18(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    model = MuDeepV2(7, backbone="resnet18", weights=tmp_path / "resnet18.pth")
    for block in (model.layer4_1, model.layer4_2[0], model.layer4_3[0]):
        assert torch.equal(block.conv1.weight, trunk.layer4[0].conv1.weight)
    assert torch.equal(model.layer4_3[2].conv2.weight, trunk.layer4[1].conv2.weight)  # a third block: the second again
    assert torch.equal(model.conv.conv.weight, trunk.conv1.weight)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        MuDeepV2(7, backbone="resnet18", weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize("backbone", RESNETS)
def test_every_backbone_can_be_made(backbone):
    with torch.device("meta"):
        model = MuDeepV2(7, backbone=backbone)
    assert model.scale1.feature.conv1.weight.shape[:2] == (512, 512 if backbone in ("resnet18", "resnet34") else 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes .* got 0"),
        ({"num_scales": 0}, "num_scales .* got 0"),
        ({"num_scales": 4}, "num_scales .* got 4"),
        ({"backbone": "vgg"}, "backbone .* got 'vgg'"),
        ({"feature_dim": 0}, "feature_dim .* got 0"),
        ({"leader_dim": -1}, "leader_dim .* got -1"),
        ({"dropout": 1.0}, "dropout .* got 1.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MuDeepV2(**{"num_classes": 7, **options})


@pytest.mark.parametrize("name", ["num_classes", "num_scales", "feature_dim", "leader_dim"])
def test_sizes_are_whole_numbers(name):
    with pytest.raises(TypeError, match=f"{name} should be an int, got float 2.0"):
        MuDeepV2(**{"num_classes": 7, name: 2.0})
