"""The rows of the paper without data: the networks are the published ones, the schedules the authors'."""

from __future__ import annotations

import pytest
import torch
from support.vision import torchvision_models, without_compiled_library

import fx_oto
from benchmarks.paper import table
from benchmarks.paper.networks import build
from benchmarks.paper.recipes import RECIPES
from benchmarks.paper.tasks import SHAPES

CARN_MEANS = 2 * (3 * 3 + 3)  # theirs subtracts and adds the mean by 1 × 1 convolutions
# The first of each; one for both CIFARs.
DISTINCT = {(recipe.network, recipe.data[:5]): name for name, recipe in reversed(RECIPES.items())}


def made(recipe, shape=None):
    """The network and two samples; on the meta device, where the network can run without numbers."""
    own, classes = SHAPES[recipe.data]
    shape = own if shape is None else shape
    if recipe.network == "BERT":
        without_compiled_library()
        pytest.importorskip("transformers")
        return build(recipe.network, recipe.data, shape, classes), {"input_ids": torch.arange(32).view(2, 16)}
    if recipe.network in ("DenseNet121", "ConvNeXt-T") or recipe.data == "ImageNet":
        torchvision_models()
    with torch.device("meta"):
        return build(recipe.network, recipe.data, shape, classes), torch.zeros(2, *shape)


@pytest.mark.parametrize("name", [name for name in DISTINCT.values() if RECIPES[name].published.full_macs])
def test_sizes_are_the_published_ones(name):
    recipe = RECIPES[name]
    known = recipe.published
    model, image = made(recipe, {"DemoNet": (3, 32, 32), "CARNx2": (3, 224, 224)}.get(recipe.network))
    cost, means = fx_oto.cost(model, image), CARN_MEANS if recipe.network == "CARNx2" else 0
    means_macs = 9 * (224**2 + 448**2) if means else 0
    assert round((cost.macs / cost.samples + means_macs) / 1e6, 2) == known.full_macs
    assert known.full_params in (None, cost.params + means)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "bert-squad" else n for n in DISTINCT.values()]
)
def test_groups_are_the_published_ones(name):
    recipe, small = RECIPES[name], {"DIV2K": (3, 16, 16), "ImageNet": (3, 64, 64)}
    model, inputs = made(recipe, small.get(recipe.data))
    zigs = fx_oto.partition(fx_oto.prepare(model, inputs))
    alone = [f for f in zigs.families if any(slot.dim == 0 and slot.tensor == "up.0.weight" for slot in f.slots)]
    found = zigs.num_zigs - sum(len(family) for family in alone)  # CARN's layer before the last, which is left alone
    known = {"resnet50-imagenet": 11456} | {n: r.published.zigs for n, r in RECIPES.items() if r.published.zigs}
    assert found == known.get(name, found) > 0


@pytest.mark.parametrize(("data", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
@pytest.mark.parametrize("network", ["VGG16", "VGG16-BN", "ResNet18", "ResNet50"])
def test_every_network_for_both_cifars(network, data, classes):
    assert {(r.network, r.data) for r in RECIPES.values()} >= {(network, data)}
    with torch.device("meta"):
        model = build(network, data, *SHAPES[data])
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


def test_published_rows():
    """As in the project's notes, section 4."""
    rows = {
        "resnet18-cifar10": (0.7, 20.3, 8.8, 92.86, 93.02),
        "resnet50-cifar10": (0.8, 10.0, 3.6, 94.39, 93.62),
        "vgg16-bn-cifar10": (0.79, 26.6, 5.0, 93.27, 93.2),
        "resnet50-imagenet": (0.4, 38.5, 49.4, 75.2, 76.1),
        "resnet18-cifar10-hesso": (0.7, None, 8.1, 92.81, 93.02),
    }
    for name, (target, macs, params, score, full) in rows.items():
        recipe, known = RECIPES[name], RECIPES[name].published
        assert (recipe.target, known.macs, known.params) == (target, macs, params)
        assert (known.scores, known.full) == ({"top-1": score}, {"top-1": full})
    carn = RECIPES["carnx2-div2k"]
    assert (carn.target, carn.published.macs, carn.published.params) == (0.6, 18.4, 18.0)
    assert list(carn.published.scores.values()) == [33.05, 31.81, 30.79]
    known = {*rows, "carnx2-div2k"}
    assert not any(recipe.published.scores for name, recipe in RECIPES.items() if name not in known)


def rates(name, epochs):
    recipe = RECIPES[name]
    return [recipe.schedule.rate(epoch, recipe.epochs) for epoch in epochs]


def test_schedules_are_the_authors():
    for name in ("resnet18-cifar10", "resnet50-cifar10", "vgg16-bn-cifar10", "stackedunets-svhn"):
        recipe = RECIPES[name]
        assert (recipe.epochs, recipe.batch, recipe.base, recipe.base_settings["lr"]) == (300, 64, "SGD", 0.1)
        assert rates(name, (0, 74.999, 75, 150, 225, 299)) == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs, found = torch.optim.lr_scheduler.StepLR(optimizer, 75, 0.1), []
        for _ in range(300):
            found.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        assert rates(name, range(300)) == pytest.approx(found)
    assert rates("resnet18-cifar10-hesso", (49, 50, 99)) == pytest.approx([1, 0.1, 0.1])
    assert rates("carnx2-div2k", (399, 400, 599)) == [1, 0.5, 0.5]
    assert rates("bert-squad", (0, 5, 10)) == [1, 0.5, 0]
    assert rates("convnext-tiny-imagenet", (0, 10, 20, 160, 300)) == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("name", RECIPES)
def test_pruning_is_done_before_the_rate_drops(name):
    recipe = RECIPES[name]
    start, end = recipe.window
    assert 0 < start < end <= recipe.epochs
    if recipe.base == "SGD":
        assert recipe.schedule.rate(end - 1e-6, recipe.epochs) == 1
    assert getattr(fx_oto, recipe.optimizer)
    assert set(recipe.base_settings) <= {"lr", "momentum", "weight_decay"}


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.optimizer == "DHSPG"])
def test_recipes_do_not_depend_on_defaults(name):
    assert {"epsilon", "lam", "amplify", "hat", "saliency"} <= set(RECIPES[name].options)


def test_a_network_that_has_no_width_says_so():
    with pytest.raises(fx_oto.InputError, match=r"VGG16 / CIFAR10 has no --width: leave it out"):
        build("VGG16", "CIFAR10", (3, 32, 32), 10, width=8)


def test_weights_are_loaded(tmp_path):
    model = build("ResNet18", "CIFAR10", (3, 32, 32), 10, width=4)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = build("ResNet18", "CIFAR10", (3, 32, 32), 10, width=4, weights=tmp_path / "weights.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(fx_oto.InputError, match="expected a file of the state dict of ResNet18, found none at"):
        build("ResNet18", "CIFAR10", (3, 32, 32), 10, width=4, weights=tmp_path / "none.pt")


def test_the_tables_of_the_readme_are_those_of_the_results():
    text = table.README.read_text()
    assert table.rows() in text
    assert table.results(table.load(table.RESULTS)) in text
    for name in RECIPES:
        assert f"| {name} " in text


def test_tables_are_written_between_their_marks(tmp_path):
    path = tmp_path / "README.md"
    text = table.README.read_text()
    path.write_text(text.replace(table.rows(), "old"))
    table.write(table.load(table.RESULTS), path)
    assert path.read_text() == text


def test_a_result_stands_beside_the_published_one():
    line = {"recipe": "resnet18-cifar10", "full": False, "epochs": 3, "batch": 2, "train": 5, "test": 4, "width": None}
    line |= {"macs": 21.04, "params_folded": 9.0, "scores": {"top-1": 12.5}, "device": "cpu", "precision": "float32"}
    line |= {"seed": 0, "seconds": 7, "date": "2026-01-01"}
    pruned, full = (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in table.results([line, {**line, "full": True}]).splitlines()[2:]
    )
    assert pruned[:6] == ["resnet18-cifar10", "pruned", "3", "2", "5 / 4", "published"]
    assert pruned[6:12] == ["21.0%", "20.3%", "9.0%", "8.8%", "top-1 12.50", "top-1 92.86"]
    assert (full[1], full[7], full[9], full[11]) == ("full", "–", "–", "top-1 93.02")
