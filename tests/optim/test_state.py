"""Stopping and resuming: bit for bit the run that was not stopped, in this process and in another."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.training import BASES, batches, prepared

import fx_oto

STEPS = 20
OPTIMIZERS = {
    "DHSPG": (fx_oto.DHSPG, {}),
    "DHSPG in one period": (fx_oto.DHSPG, {"periods": 1}),
    "DHSPG in strides": (fx_oto.DHSPG, {"periods": 1, "stride": 3}),
    "HESSO": (fx_oto.HESSO, {}),
}


def start(base="SGD", optimizer="DHSPG"):
    kind, extra = OPTIMIZERS[optimizer]
    (base_class, options), gm = BASES[base], prepared()
    window = {"start_step": 4, "end_step": 14, "saliency_batches": 3, **({"periods": 3} | extra)}
    made = kind(gm, base_class, target_group_sparsity=0.6, **window, **options)
    return gm, made, torch.optim.lr_scheduler.CosineAnnealingLR(made, STEPS)


def run(parts, data):
    gm, optimizer, schedule = parts
    for image, label in data:
        optimizer.zero_grad()
        F.cross_entropy(gm(image), label).backward()
        optimizer.step()
        schedule.step()


def saved(parts):
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    return file.getvalue()


def resumed(content, **options):
    parts = start(**options)
    for part, state in zip(parts, torch.load(io.BytesIO(content), weights_only=True), strict=True):
        part.load_state_dict(state)
    return parts


def assert_equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(right[key], value), key


@pytest.mark.parametrize("stop", [2, 3, 4, 9, 10, 13, 14, 17])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("base", BASES)
def test_resuming_is_bit_for_bit_the_run_that_was_not_stopped(base, optimizer, stop):
    """Before the window, while gradients are observed, inside, between periods and after it."""
    data, options = list(batches(STEPS)), {"base": base, "optimizer": optimizer}
    whole = start(**options)
    run(whole, data)
    first = start(**options)
    run(first, data[:stop])
    second = resumed(saved(first), **options)
    run(second, data[stop:])
    assert_equal(whole[0], second[0])
    assert whole[1].trajectory.rows() == second[1].trajectory.rows()
    assert whole[1].trajectory.reached == second[1].trajectory.reached != ""
    assert whole[1].group_sparsity == (19 if optimizer == "HESSO" else 20) / 32  # its authors round down


def test_resuming_in_a_fresh_process(tmp_path):
    data = list(batches(STEPS))
    whole, first = start(), start()
    run(whole, data)
    run(first, data[:9])
    (tmp_path / "checkpoint.pt").write_bytes(saved(first))
    torch.save(data[9:], tmp_path / "data.pt")
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[i]) for i in range(3)]!r}
import torch
torch.set_num_threads(1)
from test_state import resumed, run, saved
parts = resumed(open("checkpoint.pt", "rb").read())
run(parts, torch.load("data.pt"))
open("done.pt", "wb").write(saved(parts))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert_equal(whole[0], resumed((tmp_path / "done.pt").read_bytes())[0])


def test_another_models_state_is_refused():
    optimizer = start()[1]
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    other = fx_oto.prepare(net, torch.randn(2, 4))
    state = fx_oto.DHSPG(other, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9).state_dict()
    with pytest.raises(fx_oto.SettingsError, match=r"this state has 1 family, the model has 2"):
        optimizer.load_state_dict(state)
    with pytest.raises(fx_oto.SettingsError, match=r"this state was not saved by DHSPG: the key 'zigs' is missing"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    with pytest.raises(fx_oto.SettingsError, match=r"load_state_dict expects what state_dict\(\) of DHSPG returns"):
        optimizer.load_state_dict(None)


def start_with(width, **base):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    gm = fx_oto.prepare(net, torch.randn(2, 4))
    return gm, fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9, **base)


@pytest.mark.parametrize(("saved", "mine"), [(8, 16), (16, 8)])
@pytest.mark.parametrize("steps", [2, 9])
def test_the_state_of_another_width_is_refused_and_nothing_is_loaded(saved, mine, steps):
    gm, other = start_with(saved, momentum=0.9)
    for _ in range(steps):
        other.zero_grad()
        gm(torch.randn(3, 4)).square().mean().backward()
        other.step()
    gm, optimizer = start_with(mine, momentum=0.9)
    before = optimizer.state_dict()["param_groups"][0]["zigs"]["step"]
    with pytest.raises(fx_oto.SettingsError, match=rf"{saved} ZIGs in family 0, the model has {mine}"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict()["param_groups"][0]["zigs"]["step"] == before
    gm(torch.randn(3, 4)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("saved", "mine", "text"),
    [
        ({}, {"unprunable": ["0"]}, r"with unprunable=\[\], this one has unprunable=\['0'\]: to resume, build it with"),
        ({"min_kept": 1}, {"min_kept": {"0": 2}}, r"with min_kept=1, this one has min_kept=\{'0': 2\}:"),
        ({"max_group_sparsity": 0.6}, {}, r"with max_group_sparsity=0.6, this one has max_group_sparsity=1.0:"),
        ({}, {"round_to": 4}, r"with round_to=1, this one has round_to=4:"),
        ({}, {"uniform": "*"}, r"with uniform=\[\], this one has uniform=\[\['\*'\]\]:"),
        ({}, {"prune_frozen": True}, r"with prune_frozen=False, this one has prune_frozen=True:"),
        ({}, {"target_macs": 0.6}, r"with target_macs=0.5, this one has target_macs=0.6:"),
        ({}, {"end_step": 7, "periods": 2}, r"with end_step=3, periods=1, this one has end_step=7, periods=2:"),
        ({"stride": 2}, {}, r"with stride=2, this one has stride=1:"),
    ],
)
def test_a_state_is_resumed_within_the_limits_that_it_was_saved_with(saved, mine, text):
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    gm = fx_oto.prepare(net, torch.randn(2, 8))
    common = {"lr": 0.05, "target_macs": 0.5, "total_steps": 9}
    other = fx_oto.DHSPG(gm, **{**common, **saved})
    for _ in range(3):  # into the window
        gm(torch.randn(3, 8)).square().mean().backward()
        other.step()
    optimizer = fx_oto.DHSPG(gm, **{**common, **mine})
    with pytest.raises(fx_oto.SettingsError, match=text):
        optimizer.load_state_dict(other.state_dict())
    assert not any(len(active) for active in optimizer._rows.active)
    fx_oto.DHSPG(gm, **{**common, **saved}).load_state_dict(other.state_dict())


def test_globs_that_stand_for_the_same_are_the_same():
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    gm = fx_oto.prepare(net, torch.randn(2, 8))
    common = {"lr": 0.05, "target_group_sparsity": 0.3, "total_steps": 9}
    first = fx_oto.DHSPG(gm, **common, unprunable=["0", "0.bias"], uniform=[("1", "2")], saliency="magnitude")
    again = fx_oto.DHSPG(gm, **common, unprunable=("0.bias", "0"), uniform=(["2", "1"],), allocation="global")
    again.load_state_dict(first.state_dict())


def test_hooks_of_states_are_called_as_torchs_optimizers_do():
    for optimizer in (torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1), start_with(8)[1]):
        seen = []
        optimizer.register_state_dict_pre_hook(lambda mine, seen=seen: seen.append(("saves", mine)))
        optimizer.register_state_dict_post_hook(lambda mine, state: {**state, "epoch": 3})
        optimizer.register_load_state_dict_pre_hook(
            lambda mine, state, seen=seen: seen.append(("loads", state["epoch"])) or {**state, "epoch": 4}
        )
        optimizer.register_load_state_dict_post_hook(lambda mine, seen=seen: seen.append(("loaded", mine)))
        optimizer.load_state_dict(optimizer.state_dict())
        assert seen == [("saves", optimizer), ("loads", 3), ("loaded", optimizer)]


@pytest.mark.parametrize(("base", "stop"), [("SGD", 3), ("AdamW", 9), ("SGD", 17)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_copies_train_on_as_what_they_were_copied_from(base, optimizer, stop):
    """Of all parts together, and of the schedule alone, which takes its optimizer and that its model with it."""
    data = list(batches(STEPS))
    parts = start(base=base, optimizer=optimizer)
    run(parts, data[:stop])
    together, schedule = copy.deepcopy(parts), copy.deepcopy(parts[2])
    for twins in (together, (schedule.optimizer._gm, schedule.optimizer, schedule)):
        before = copy.deepcopy(parts[0].state_dict())
        run(twins, data[stop:])
        assert all(torch.equal(tensor, before[key]) for key, tensor in parts[0].state_dict().items())
    run(parts, data[stop:])
    for twin, its in (together[:2], (schedule.optimizer._gm, schedule.optimizer)):
        assert_equal(parts[0], twin)
        assert parts[1].reached() == its.reached()
        assert_equal(fx_oto.compress(parts[0]), fx_oto.compress(twin))


WAYS = {
    "pickle": pickle.dumps,
    "torch.save": lambda one: torch.save(one, io.BytesIO()),
    "among others": lambda one: torch.save({"epoch": 3, "optimizer": one}, io.BytesIO()),
    "with the model": lambda one: pickle.dumps((one._gm, one)),
    "a schedule": lambda one: pickle.dumps(torch.optim.lr_scheduler.StepLR(one, 5)),
    "a copy": lambda one: pickle.dumps(copy.copy(copy.deepcopy(one))),
    "to a process": ForkingPickler.dumps,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ["DHSPG", "HESSO"])
def test_an_optimizer_is_not_pickled_whole(way, optimizer):
    _, made, _ = start(optimizer=optimizer)
    text = rf"{optimizer} cannot be pickled, nor saved by torch\.save, .* save optimizer\.state_dict\(\) and model"
    with pytest.raises(fx_oto.FileError, match=text):
        WAYS[way](made)
