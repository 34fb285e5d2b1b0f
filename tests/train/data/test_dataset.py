"""Samples, the reader and the registry."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import train.data
from train.data import ImageDataset, RandomIdentitySampler, ReIDDataset, Sample, dataset_names, load_dataset, read_image
from train.data import test_transform as plain_transform


def test_names():
    assert dataset_names() == [
        "market1501", "dukemtmcreid", "cuhk03", "cuhk03np_detected", "cuhk03np_labeled", "msmt17", "market1501_partial",
        "dukemtmcreid_partial", "synthetic", "synthetic_partial", "folder",
    ]  # fmt: skip


def test_every_exported_name_exists():
    for name in train.data.__all__:
        assert getattr(train.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        train.data.nothing  # noqa: B018


def test_unknown_name_and_options(tmp_path):
    with pytest.raises(ValueError, match="name should be one of market1501, .*, got 'market'"):
        load_dataset("market", tmp_path)
    with pytest.raises(ValueError, match="market1501 takes no options, got query_camera"):
        load_dataset("market1501", tmp_path, query_camera=1)
    with pytest.raises(ValueError, match="msmt17 has the options without_validation, got seed"):
        load_dataset("msmt17", tmp_path, without_validation=True, seed=1)
    with pytest.raises(ValueError, match="folder has the options pattern, .*, got colour"):
        load_dataset("folder", tmp_path, colour=1)


@pytest.mark.parametrize("name", dataset_names())
def test_missing_folder(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^no folder for {name} at '.*/nowhere'; give --root$"):
        load_dataset(name, tmp_path / "nowhere")


def test_summary_counts():
    train = [Sample("a", 0, 1), Sample("b", 0, 2), Sample("c", 1, 1)]
    data = ReIDDataset("tiny", train, [Sample("d", 7, 1)], [Sample("e", 7, 2), Sample("f", 0, 2)])
    assert data.num_train_identities == 2
    lines = [line.replace(" ", "").split("|") for line in data.summary().splitlines()]
    assert lines[0] == ["tiny"]
    assert lines[1] == ["subset", "#ids", "#images", "#cameras"]
    assert lines[3:] == [["train", "2", "3", "2"], ["query", "1", "1", "1"], ["gallery", "2", "2", "1"]]


def test_reads_rgb_whatever_the_file_holds(tmp_path):
    samples = []
    for index, (mode, extension) in enumerate([("L", "png"), ("RGBA", "png"), ("P", "png"), ("RGB", "jpg")]):
        path = tmp_path / f"{index}.{extension}"
        Image.new(mode, (3, 5)).save(path)
        samples.append(Sample(str(path), index, index + 10))
    dataset = ImageDataset(samples)
    assert len(dataset) == 4
    for index in range(4):
        image, identity, camera = dataset[index]
        assert (image.mode, image.size, identity, camera) == ("RGB", (3, 5), index, index + 10)


def test_exif_turns_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: a quarter turn clockwise sets it right
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png"))[..., 0], np.rot90(pixels, -1))


@pytest.mark.parametrize("extension", ["png", "tif", "ppm"])
def test_16_bits_become_8(tmp_path, extension):
    Image.fromarray(np.array([[0, 255, 256], [32768, 40000, 65535]], np.uint16)).save(tmp_path / f"deep.{extension}")
    image = np.asarray(read_image(tmp_path / f"deep.{extension}"))
    assert image.tolist() == [[[value] * 3 for value in row] for row in ([0, 0, 1], [128, 156, 255])]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(tmp_path, mode):
    pixels = np.array([[[200, 200, 200, 0], [200, 200, 200, 255]]], np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "cut_out.png")
    assert np.asarray(read_image(tmp_path / "cut_out.png")).tolist() == [[[255] * 3, [200] * 3]]


def test_unreadable_image_is_named(tmp_path):
    text = tmp_path / "0001_c1s1_000001_00.jpg"
    text.write_text("this is no image")
    cut = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 60).save(cut)
    cut.write_bytes(cut.read_bytes()[:700])
    for path in (text, cut):
        with pytest.raises(OSError, match=path.name) as error:
            ImageDataset([Sample(str(path), 0, 1)])[0]
        assert str(path) in str(pickle.loads(pickle.dumps(error.value)))  # it has to come back from a worker process
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        ImageDataset([Sample(str(tmp_path / "gone.jpg"), 0, 1)])[0]


def test_loader_with_workers_delivers_p_times_k(synthetic):
    data = load_dataset("synthetic", synthetic)
    sampler = RandomIdentitySampler(data.train, 8, 4, seed=3)
    loader = DataLoader(ImageDataset(data.train, plain_transform(32, 16)), 8, sampler=sampler, num_workers=1)
    batches = list(loader)
    assert len(batches) == 3
    for images, identities, cameras in batches:
        assert images.shape == (8, 3, 32, 16) and images.dtype == torch.float32
        assert identities.dtype == torch.int64 and cameras.dtype == torch.int64
        assert torch.equal(identities.view(2, 4), identities.view(2, 4)[:, :1].expand(2, 4))
