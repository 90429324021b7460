"""The files of the data sets give the numbers that they hold, and losses and scores are the usual ones."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support import datasets
from support.vision import torchvision_models

import fx_oto
from benchmarks.paper.images import crops
from benchmarks.paper.recipes import RECIPES
from benchmarks.paper.tasks import Options, load, spread

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def task_of(name, root, subset=None, **changes):
    weights = changes.pop("weights", None)
    return load(replace(RECIPES[name], **changes), root, Options(subset=subset, weights=weights))


def in_order(task):
    return torch.cat([x for x, _ in task.tests()]), torch.cat([y for _, y in task.tests()])


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, monkeypatch, classes):
    written = datasets.cifar(tmp_path, monkeypatch, classes)
    task = task_of(f"resnet18-cifar{classes}", tmp_path)
    train, test = [part for name, part in written.items() if "test" not in name], written.popitem()[1]
    assert task.counts == (10 * len(train), 10)
    assert torch.equal(task.train, torch.cat([images for images, _ in train]))
    assert torch.equal(task.labels, torch.cat([labels for _, labels in train]))
    images, labels = in_order(task)
    torch.testing.assert_close(images, (test[0] / 255 - MEAN) / STD)
    assert torch.equal(labels, test[1])


def test_svhn(tmp_path, monkeypatch):
    written = datasets.svhn(tmp_path, monkeypatch)
    task = task_of("stackedunets-svhn", tmp_path)
    assert torch.equal(task.train, written["train"][0])
    assert torch.equal(task.labels, written["train"][1])
    assert 0 in task.labels
    assert torch.equal(in_order(task)[1], written["test"][1])


@pytest.mark.parametrize("compressed", [True, False])
def test_fashion_mnist(tmp_path, compressed):
    if not compressed:
        torchvision_models()
    written = datasets.fashion_mnist(tmp_path, compressed)
    task = task_of("demonet-fashion-mnist", tmp_path)
    assert torch.equal(task.train, written["train"][0][:, None])
    assert torch.equal(task.labels, written["train"][1])
    torch.testing.assert_close(in_order(task)[0], (written["t10k"][0][:, None] / 255 - 0.286) / 0.353)


def test_image_folders(tmp_path):
    torchvision_models()
    datasets.image_folders(tmp_path)
    task = task_of("resnet50-imagenet", tmp_path, subset=3, batch=2)
    assert task.counts == (3, 6)
    assert task.steps() == 2
    task.generator.manual_seed(0)
    shapes = [tuple(images.shape) for images, _ in task.batches()]
    assert shapes == [(2, 3, 224, 224), (1, 3, 224, 224)]
    assert sorted(y for _, labels in task.batches() for y in labels.tolist()) == [0, 1, 2]  # evenly spread
    images, labels = in_order(task)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.shape == (6, 3, 224, 224)
    (tmp_path / "val" / "n00000002").rename(tmp_path / "val" / "other")
    with pytest.raises(fx_oto.InputError, match="expected the same folders, at most 1000, in"):
        task_of("resnet50-imagenet", tmp_path)


def test_batches_are_a_shuffled_pass_with_flips_and_crops(tmp_path):
    written = datasets.fashion_mnist(tmp_path)
    task = task_of("resnet18-fashion-mnist", tmp_path, batch=4, augmentation=())
    assert task.steps() == 3
    task.generator.manual_seed(1)
    batches = list(task.batches())
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert sorted(labels.tolist()) == sorted(written["train"][1].tolist())
    right = task.normalised(written["train"][0][:, None])
    order = [int((right - image).abs().flatten(1).amax(1).argmin()) for image in images]
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    assert torch.equal(labels, written["train"][1][order])
    task.recipe = replace(task.recipe, augmentation=("flip",))
    task.generator.manual_seed(1)
    flipped = torch.cat([x for x, _ in task.batches()])
    same = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(new.flip(2), old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(mirrored) < 10


def test_crops_are_torchvisions():
    torchvision_models()
    from torchvision.transforms.functional import crop, pad

    images = datasets.random_images(5, 3, 12, 16)
    corners = torch.tensor([[0, 8, 4, 3, 1], [0, 8, 4, 7, 2]])
    right = [crop(pad(x, 4), int(r), int(c), 12, 16) for x, r, c in zip(images, *corners, strict=True)]
    assert torch.equal(crops(images, corners), torch.stack(right))


def test_mixup_is_of_images_and_labels(tmp_path):
    datasets.fashion_mnist(tmp_path)
    task = task_of("resnet18-fashion-mnist", tmp_path, augmentation=("mixup", "smoothing"))
    images, labels = torch.randn(6, 10), torch.arange(6)
    torch.manual_seed(3)
    found = task.loss(torch.nn.Identity(), (images, labels))
    torch.manual_seed(3)
    share, other = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(6)
    one_hot = torch.eye(10) * 0.9 + 0.01
    target = share * one_hot[labels] + (1 - share) * one_hot[labels[other]]
    mixed = share * images + (1 - share) * images[other]
    torch.testing.assert_close(found, -(target * mixed.log_softmax(1)).sum(1).mean())
    assert 0 < share < 1


def test_top_1(tmp_path):
    datasets.fashion_mnist(tmp_path)
    task = task_of("resnet18-fashion-mnist", tmp_path)
    right = task.test_labels.clone()
    right[:3] = (right[:3] + 1) % 10

    class Oracle(torch.nn.Module):
        def forward(self, x):
            return torch.eye(10)[right]

    assert task.score(Oracle()) == {"top-1": 70.0}


@pytest.mark.parametrize("subset", [1, 3, 7, 10])
def test_a_subset_is_evenly_spread(subset):
    chosen = spread(10, subset).tolist()
    assert len(set(chosen)) == subset
    assert max(chosen) < 10
    assert {b - a for a, b in pairwise(chosen)} <= {10 // subset, 10 // subset + 1}


def test_a_subset_larger_than_the_data_is_refused():
    with pytest.raises(fx_oto.InputError, match=r"between 1 and the 10 training samples, found 11"):
        spread(10, 11)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet18-cifar10", "expected CIFAR10 in .*: the folder cifar-10-batches-py"),
        ("resnet18-cifar100", "expected CIFAR100 in .*: the folder cifar-100-python"),
        ("stackedunets-svhn", "expected SVHN in .*: train_32x32.mat and test_32x32.mat"),
        ("demonet-fashion-mnist", "expected Fashion-MNIST in .*train-images-idx3-ubyte"),
        ("resnet50-imagenet", "expected ImageNet in .*: train/CLASS"),
        ("carnx2-div2k", "expected DIV2K in .*: DIV2K_train_HR/"),
    ],
)
def test_data_that_is_not_there(tmp_path, name, text):
    torchvision_models()
    with pytest.raises(fx_oto.InputError, match=text):
        task_of(name, tmp_path)


def test_damaged_idx_files_are_refused(tmp_path):
    datasets.fashion_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(fx_oto.InputError, match="the file is incomplete"):
        task_of("demonet-fashion-mnist", tmp_path)


# -- super-resolution ----------------------------------------------------------------------------------------


def test_pairs_of_patches_match(tmp_path):
    datasets.div2k(tmp_path)
    task = task_of("carnx2-div2k", tmp_path, batch=3, steps=4)
    task.generator.manual_seed(0)
    batches = list(task.batches())
    assert len(batches) == task.steps() == 4
    seen = set()
    for low, high in batches:
        assert low.shape == (3, 3, 64, 64)
        assert high.shape == (3, 3, 128, 128)
        parts = [high[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]  # the small one is every second pixel
        seen |= {i for x, *four in zip(low, *parts, strict=True) for i, y in enumerate(four) if torch.equal(x, y)}
        assert all(any(torch.equal(x, y) for y in four) for x, *four in zip(low, *parts, strict=True))
    assert len(seen) > 1  # turned and mirrored: the pixel kept is another corner of the four


def test_psnr_is_of_the_luminance():
    from benchmarks.paper.super_resolution import luminance, psnr

    black, white = torch.zeros(3, 8, 10, dtype=torch.uint8), torch.full((3, 8, 10), 255, dtype=torch.uint8)
    assert luminance(black)[0, 0] == 16
    torch.testing.assert_close(luminance(white)[0, 0], torch.tensor(235.0, dtype=torch.float64))
    grey = torch.full_like(white, 100)
    assert psnr(grey, grey + 1) == pytest.approx(20 * math.log10(255 / (219 / 255)))
    dirty = grey.clone()
    dirty[:, :2], dirty[:, :, -2:] = 0, 255  # the border does not count
    assert psnr(dirty, grey + 1) == psnr(grey, grey + 1)
    assert psnr(grey, torch.nn.functional.pad(grey + 1, (0, 1, 0, 1))) == psnr(grey, grey + 1)
    blue = grey.clone()
    blue[2] += 1
    assert psnr(blue, grey) == pytest.approx(20 * math.log10(255 / (24.966 / 255)))


def test_scores_of_the_three_test_sets(tmp_path):
    datasets.div2k(tmp_path)
    task = task_of("carnx2-div2k", tmp_path)
    assert task.counts == (2, 6)
    scores = task.score(torch.nn.Upsample(scale_factor=2))
    assert list(scores) == list(RECIPES["carnx2-div2k"].published.scores)
    assert len(set(scores.values())) == 1  # the same pictures in both layouts
    assert 5 < scores["PSNR Set14"] < 30


def test_pictures_that_do_not_match_are_refused(tmp_path):
    datasets.div2k(tmp_path)
    datasets.picture(tmp_path / "DIV2K_train_HR" / "0002.png", datasets.random_images(3, 140, 140))
    with pytest.raises(fx_oto.InputError, match=r"enlargements by 2; found \(3, 70, 72\) and \(3, 140, 140\)"):
        task_of("carnx2-div2k", tmp_path)
    (tmp_path / "DIV2K_train_HR" / "0002.png").unlink()
    with pytest.raises(fx_oto.InputError, match=r"found 1 DIV2K_train_HR/.* and 2 DIV2K_train_LR_bicubic"):
        task_of("carnx2-div2k", tmp_path)


# -- questions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "answers", "em", "f1"),
    [
        ("The old mill!", ["old  mill"], 1, 1),
        ("an old mill", ["mill", "river"], 0, 2 / 3),
        ("river", ["mill"], 0, 0),
        ("", ["mill"], 0, 0),
        ("red red stone", ["red stone"], 0, 0.8),
    ],
)
def test_scores_of_answers(found, answers, em, f1):
    from benchmarks.paper import squad

    assert squad.exact(found, answers) == em
    assert squad.f1(found, answers) == pytest.approx(f1)


@pytest.mark.parametrize("repeat", [1, 30])  # one window, and several for each question
def test_a_model_that_knows_the_spans_has_full_marks(tmp_path, repeat):
    datasets.tiny_bert(tmp_path / "bert")
    datasets.squad(tmp_path / "data", repeat)
    task = task_of("bert-squad", tmp_path / "data", weights=tmp_path / "bert")
    assert task.counts == (3, 3)
    assert task.example["input_ids"].shape == (2, 384)
    ((inputs, spans, owners, _),) = task.windows(task.questions)
    assert len(owners) == 3 if repeat == 1 else len(owners) > 3
    assert (spans.sum(1) > 0).sum() >= 3

    class Oracle(torch.nn.Module):
        at = 0

        def forward(self, **batch):
            part = spans[self.at : self.at + len(batch["input_ids"])]
            assert torch.equal(batch["input_ids"], inputs["input_ids"][self.at : self.at + len(part)])
            Oracle.at += len(part)
            starts, ends = (torch.nn.functional.one_hot(x, 384).float() * x.clamp(max=1)[:, None] for x in part.T)
            return {"start_logits": starts, "end_logits": ends}

    assert task.score(Oracle()) == {"F1": 100.0, "EM": 100.0}


def test_answers_are_where_their_tokens_are(tmp_path):
    datasets.tiny_bert(tmp_path / "bert")
    datasets.squad(tmp_path / "data")
    task = task_of("bert-squad", tmp_path / "data", weights=tmp_path / "bert")
    spans = zip(task.inputs["input_ids"], task.spans.tolist(), strict=True)
    words = [task.tokenizer.decode(ids[a : b + 1]) for ids, (a, b) in spans]
    assert words == ["by the river", "1820", "two brothers"]


def test_squad_needs_the_tokenizer(tmp_path):
    datasets.squad(tmp_path)
    with pytest.raises(fx_oto.InputError, match="SQuAD needs the tokenizer's files of a pretrained BERT"):
        task_of("bert-squad", tmp_path)


def test_files_that_are_not_squad_are_refused(tmp_path):
    datasets.tiny_bert(tmp_path / "bert")
    with pytest.raises(fx_oto.InputError, match=r"expected SQuAD 1\.1 in"):
        task_of("bert-squad", tmp_path, weights=tmp_path / "bert")
    (tmp_path / "train-v1.1.json").write_text('{"data": [{"title": "no paragraphs"}]}')
    with pytest.raises(fx_oto.InputError, match=r"train-v1.1.json is not of SQuAD 1.1: KeyError 'paragraphs'"):
        task_of("bert-squad", tmp_path, weights=tmp_path / "bert")
