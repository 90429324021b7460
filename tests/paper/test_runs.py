"""Whole runs on tiny files: training, checkpoint, compression, score, line, table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support import datasets
from support.vision import torchvision_models

import fx_oto
from benchmarks.paper import __main__ as command
from benchmarks.paper.recipes import RECIPES
from benchmarks.paper.tasks import Options, load
from benchmarks.paper.training import Run, Training, carry_out


def data_of(name, root, monkeypatch):
    """The tiny files that a recipe reads, and the weights that it begins with."""
    recipe = RECIPES[name]
    root.mkdir()
    if recipe.data.startswith("CIFAR"):
        datasets.cifar(root, monkeypatch, int(recipe.data[5:]), count=4)
    elif recipe.data == "SVHN":
        datasets.svhn(root, monkeypatch, count=4)
    elif recipe.data == "Fashion-MNIST":
        datasets.fashion_mnist(root, count=4)
    elif recipe.data == "ImageNet":
        torchvision_models()
        datasets.image_folders(root, classes=2)
    elif recipe.data == "DIV2K":
        datasets.div2k(root)
    else:
        datasets.tiny_bert(root / "bert")
        datasets.squad(root)
        return root / "bert"
    return None


def run_of(name, recipe, **changes):
    fields = {"full": False, "epochs": recipe.epochs, "subset": None, "width": None, "seed": 0, "batch": recipe.batch}
    return Run(name, precision="float32", **(fields | changes))


SMALL = ("stackedunets-svhn", "demonet-fashion-mnist", "resnet18-cifar10-hesso", "bert-squad")


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_two_steps_of_every_recipe(name, tmp_path, monkeypatch):
    weights = data_of(name, tmp_path / "data", monkeypatch)
    recipe = replace(RECIPES[name], batch=2, steps=RECIPES[name].steps and 2)
    options = Options(subset={"DIV2K": 2, "SQuAD": 3}.get(recipe.data, 4), weights=weights)
    task = load(recipe, tmp_path / "data", options)
    training = Training(run_of(name, recipe, epochs=1), recipe, task, options)
    before = {key: value.clone() for key, value in training.gm.named_parameters()}
    assert training.per_epoch == 2
    assert training.train_epoch() > 0
    moved = [key for key, value in training.gm.named_parameters() if not torch.equal(value, before[key])]
    assert len(moved) > len(before) / 2
    assert training.optimizer.group_sparsity == pytest.approx(recipe.target, abs=0.02)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18-cifar10", ["--width", "4", "--subset", "4"]),
        ("resnet18-cifar10", ["--width", "4", "--subset", "4", "--full", "--bfloat16"]),
        ("resnet18-cifar100", ["--width", "4", "--subset", "2"]),
        ("demonet-fashion-mnist", ["--width", "8"]),
        ("bert-squad", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value[-2:]),
)
def test_the_command(name, arguments, tmp_path, monkeypatch, capsys):
    weights = data_of(name, tmp_path / "data", monkeypatch)
    given = [name, "--data", str(tmp_path / "data"), "--epochs", "1", "--batch", "2", *arguments]
    given += ["--results", str(tmp_path / "results.jsonl"), "--checkpoints", str(tmp_path / "kept")]
    given += ["--weights", str(weights)] if weights else []
    assert command.main(given) == 0
    (line,) = [json.loads(one) for one in (tmp_path / "results.jsonl").read_text().splitlines()]
    recipe, full = RECIPES[name], "--full" in arguments
    assert set(line["scores"]) == ({"F1", "EM"} if recipe.data == "SQuAD" else {"top-1"})
    assert line["group_sparsity"] == (0 if full else pytest.approx(recipe.target, abs=0.05))
    assert (line["macs"] < 100) is not full
    assert line["params_folded"] <= line["params"] <= 100
    assert line["zigs"] > 0
    printed = capsys.readouterr().out
    assert "epoch 1/1" in printed
    assert f"| {name}" in printed
    kept = [path.suffix for path in (tmp_path / "kept").iterdir()]
    assert kept == ([] if full else [".safetensors"])
    if not full:
        compact = fx_oto.load(next((tmp_path / "kept").iterdir()))
        assert sum(p.numel() for p in compact.parameters()) < line["full_params"]
    assert command.main(given) == 0  # the line is there: nothing is trained again
    assert "epoch" not in capsys.readouterr().out.split("|")[0]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("carnx2-div2k", 4), ("resnet50-imagenet-scratch", None)])
def test_heavier_commands(name, width, tmp_path, monkeypatch):
    data_of(name, tmp_path / "data", monkeypatch)
    recipe = replace(RECIPES[name], steps=RECIPES[name].steps and 2)
    run = run_of(name, recipe, epochs=1, batch=2, width=width)
    line = carry_out(run, tmp_path / "data", Options(), tmp_path, recipe=recipe)
    assert list(line["scores"]) == list(recipe.published.scores or {"top-1": 0})
    assert line["group_sparsity"] == pytest.approx(recipe.target, abs=0.05)


class Stopped(Exception):
    pass


def stopped_after(count):
    """Called after each epoch: raises after the one with this number."""

    def say(text):
        if f"epoch {count}/" in text:
            raise Stopped

    return say


@pytest.mark.parametrize("optimizer", ["DHSPG", "HESSO"])
def test_a_run_stopped_again_and_again_ends_bit_for_bit_the_same(optimizer, tmp_path):
    datasets.fashion_mnist(tmp_path, count=16)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    recipe = replace(RECIPES["demonet-fashion-mnist"], base_settings=settings, augmentation=("flip", "crop", "mixup"))
    recipe = replace(recipe, epochs=5, window=(1.5, 3), optimizer=optimizer)
    recipe = recipe if optimizer == "DHSPG" else replace(recipe, options={"periods": 3})
    run = run_of("demonet-fashion-mnist", recipe, width=8, subset=12, batch=4)
    lines, compact = [], []
    for folder, stops in (("whole", ()), ("stopped", (1, 2, 3, 5))):  # before the window, in it, after it, at the end
        for stop in stops:
            with pytest.raises(Stopped):
                carry_out(run, tmp_path, Options(subset=12), tmp_path / folder, stopped_after(stop), recipe)
            torch.randn(7)  # another process has other numbers
        lines.append(carry_out(run, tmp_path, Options(subset=12), tmp_path / folder, recipe=recipe))
        compact.append(fx_oto.load(tmp_path / folder / f"{run}.safetensors").state_dict())
        assert not (tmp_path / folder / f"{run}.pt").exists()
    for line in lines:
        line.pop("seconds")
    assert lines[0] == lines[1]
    assert compact[0].keys() == compact[1].keys()
    assert all(torch.equal(value, compact[1][name]) for name, value in compact[0].items())


def test_random_transforms_of_folders_go_on_as_well(tmp_path):
    torchvision_models()
    datasets.image_folders(tmp_path)
    recipe = replace(RECIPES["resnet50-imagenet-scratch"], batch=2)
    task = load(recipe, tmp_path, Options())
    torch.manual_seed(0)
    task.generator.manual_seed(0)
    list(task.batches())
    state = task.generator.get_state(), torch.get_rng_state()
    second = torch.cat([x for x, _ in task.batches()])
    task.generator.set_state(state[0])
    torch.set_rng_state(state[1])
    assert torch.equal(torch.cat([x for x, _ in task.batches()]), second)
    assert not torch.equal(torch.cat([x for x, _ in task.batches()]), second)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    datasets.fashion_mnist(tmp_path)
    recipe = replace(RECIPES["resnet18-fashion-mnist"], batch=4)
    run = run_of("resnet18-fashion-mnist", recipe, epochs=2, width=4)
    training = Training(run, recipe, load(recipe, tmp_path, Options()), Options())
    with pytest.raises(fx_oto.InputError, match=r"the checkpoint is of .*'seed': 1.*: move it away"):
        training.restore(training.state() | {"run": training.state()["run"] | {"seed": 1}})


@pytest.mark.parametrize("epochs", [4, 12, 300])
def test_fewer_epochs_keep_the_proportions(epochs, tmp_path):
    datasets.fashion_mnist(tmp_path)
    recipe = replace(RECIPES["resnet18-fashion-mnist"], batch=3)
    run = run_of("resnet18-fashion-mnist", recipe, epochs=epochs, width=4)
    training = Training(run, recipe, load(recipe, tmp_path, Options()), Options())
    assert training.per_epoch == 4
    drops = [step for step in range(1, training.total) if training.rate(step) < training.rate(step - 1)]
    assert drops == [epochs, 2 * epochs, 3 * epochs]  # steps: quarters of the training
    assert training.window() == (round(4 * epochs / 6), epochs)
    assert (training.optimizer.schedule.start, training.optimizer.schedule.end) == training.window()


def test_rates_are_those_of_the_schedule_while_it_trains(tmp_path):
    datasets.fashion_mnist(tmp_path, count=4)
    recipe = replace(RECIPES["resnet18-fashion-mnist"], batch=4)
    run = run_of("resnet18-fashion-mnist", recipe, epochs=8, width=2)
    training, rates = Training(run, recipe, load(recipe, tmp_path, Options()), Options()), []
    while training.epoch < 8:
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.train_epoch()
    assert rates == pytest.approx([0.1] * 2 + [0.01] * 2 + [0.001] * 2 + [0.0001] * 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["resnet50-imagenet", "--data", "."], "begins with trained weights"),
        (["bert-squad", "--data", "."], "the folder of a pretrained BERT with its tokenizer's files, with --weights"),
        (["demonet-fashion-mnist", "--data", "nowhere"], "nothing is downloaded"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, text, tmp_path, capsys):
    assert command.main([*arguments, "--results", str(tmp_path / "none")]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "a recipe and --data DIR are needed"),
        (["demonet-fashion-mnist", "--data", ".", "--epochs", "0"], "argument --epochs: must be at least 1, found 0"),
        (["no-such-recipe", "--data", "."], "invalid choice: 'no-such-recipe'"),
    ],
)
def test_what_is_needed_is_said(arguments, text, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert text in capsys.readouterr().err
