"""Any base optimizer, with torch's tools around it: schedulers, scalers, clipping, accumulation, autocast."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.training import IMAGE, batches, make_net, prepared, train
from support.vision import torchvision_models

import fx_oto

CLASSES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05}),
    "SGD with everything": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "foreach": True},
    ),
    "SGD with dampening": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1}),
    "fused SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "Adam": (torch.optim.Adam, {"lr": 2e-3, "weight_decay": 1e-2, "amsgrad": True}),
    "fused AdamW": (torch.optim.AdamW, {"lr": 2e-3, "fused": True}),
    "foreach AdamW": (torch.optim.AdamW, {"lr": 2e-3, "foreach": True}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "NAdam": (torch.optim.NAdam, {"lr": 2e-3}),
    "learning rate in a tensor": (torch.optim.AdamW, {"lr": torch.tensor(2e-3)}),
}


def third_party(name):
    if name == "Lion":
        torchvision_models()  # timm imports torchvision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optim = pytest.importorskip("timm.optim", reason="timm is not installed")
        return optim.Lion, {"lr": 1e-3, "weight_decay": 1e-2}
    module = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    return module.AdamWScheduleFree, {"lr": 5e-3, "weight_decay": 1e-3}


def assert_zero_and_exact(gm, model, sparsity=0.5):
    zigs = fx_oto.partition(gm)
    assert zigs.group_sparsity() == sparsity
    parameters = dict(gm.named_parameters())
    for family, zero in zip(zigs.families, zigs.zeros(), strict=True):
        for slot in family.variables:
            assert not parameters[slot.tensor].index_select(slot.dim, slot.index[zero].reshape(-1)).any()
    small = fx_oto.compress(gm)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("train_eager", [False, True])
@pytest.mark.parametrize("name", [*CLASSES, "Lion"])
def test_every_base_reaches_the_target_and_keeps_it(name, train_eager):
    base, options = CLASSES[name] if name in CLASSES else third_party(name)
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=2, end_step=12, periods=2, **options)
    train(model if train_eager else gm, optimizer, 20)
    assert_zero_and_exact(gm, model)


@pytest.mark.parametrize("train_eager", [False, True])
def test_a_schedule_free_base_stays_zero_in_both_of_its_modes(train_eager):
    base, options = third_party("schedule-free")
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE)
    optimizer = fx_oto.DHSPG(gm, base(gm.parameters(), **options), target_group_sparsity=0.5, start_step=2, end_step=12)
    optimizer.train()
    train(model if train_eager else gm, optimizer, 20)
    optimizer.eval()
    assert_zero_and_exact(gm, model)
    optimizer.train()
    assert_zero_and_exact(gm, model)
    with pytest.raises(AttributeError, match="'DHSPG' object has no attribute 'eval'"):
        fx_oto.DHSPG(prepared(), torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=20).eval()


@pytest.mark.parametrize("name", CLASSES)
def test_without_redundant_groups_it_is_the_base(name):
    """The window has not begun, so parameters are those of the base, bit for bit."""
    base, options = CLASSES[name]
    gm, plain = prepared(), make_net()
    train(gm, fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=6, end_step=9, **options), 6)
    train(plain, base(plain.parameters(), **options), 6)
    for key, value in plain.named_parameters():
        torch.testing.assert_close(gm.get_parameter(key), value, rtol=0, atol=0)


def test_a_base_instance_with_parameter_groups_is_kept():
    gm = prepared()
    norms = [p for _, p in gm.named_parameters() if p.ndim == 1]
    rest = [p for _, p in gm.named_parameters() if p.ndim > 1]
    base = torch.optim.SGD([{"params": rest, "weight_decay": 0.1}, {"params": norms, "lr": 0.01}], lr=0.05)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=1, end_step=6)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    train(gm, optimizer, 6, schedule=schedule)
    assert [group["lr"] for group in base.param_groups] == pytest.approx([0.05 * 0.01, 0.01 * 0.01])
    assert optimizer.group_sparsity == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=13),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[4],
        ),
    ],
)
def test_schedulers_drive_the_base(make):
    options = {"lr": 0.05, "momentum": 0.9}
    gm, plain = prepared(), make_net()
    ours = fx_oto.DHSPG(gm, torch.optim.SGD, target_group_sparsity=0.5, start_step=2, end_step=8, **options)
    theirs = torch.optim.SGD(plain.parameters(), **options)
    for net, optimizer in ((gm, ours), (plain, theirs)):
        train(net, optimizer, 12, schedule=make(optimizer))
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
    assert ours.group_sparsity == 0.5


def test_a_learning_rate_of_zero_changes_nothing_but_the_groups():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.0, target_group_sparsity=0.5, start_step=0, end_step=6)
    train(gm, optimizer, 8)
    assert optimizer.group_sparsity == 0.5
    assert all(p.isfinite().all() for p in gm.parameters())


def test_gradients_may_be_accumulated_and_clipped():
    """Two half batches, clipped: DHSPG sees what the base sees."""
    options = {"target_group_sparsity": 0.5, "start_step": 2, "end_step": 8, "lr": 0.05, "momentum": 0.9}
    whole, halves = prepared().eval(), prepared().eval()  # in eval mode a batch is the sum of its halves
    optimizers = [fx_oto.DHSPG(gm, torch.optim.SGD, **options) for gm in (whole, halves)]
    for image, label in batches(12):
        for gm, optimizer, parts in zip((whole, halves), optimizers, (1, 2), strict=True):
            optimizer.zero_grad()
            for x, y in zip(image.chunk(parts), label.chunk(parts), strict=True):
                (F.cross_entropy(gm(x), y) / parts).backward()
            torch.nn.utils.clip_grad_norm_(gm.parameters(), 0.5)
            optimizer.step()
    for left, right in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-10)
    assert optimizers[0].group_sparsity == optimizers[1].group_sparsity == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaler(dtype):
    """Steps that overflow are skipped by the scaler and do not count; the target is reached all the same."""
    model = make_net().float()
    gm = fx_oto.prepare(model, IMAGE.float())
    optimizer = fx_oto.DHSPG(
        gm, torch.optim.SGD, lr=0.05, momentum=0.9, target_group_sparsity=0.5, start_step=2, end_step=10
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    skipped = 0
    for image, label in batches(70, dtype=torch.float32):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(gm(image), label)
        scaler.scale(loss).backward()
        before = optimizer.state_dict()["param_groups"][0]["zigs"]["step"]
        scaler.step(optimizer)
        scaler.update()
        skipped += optimizer.state_dict()["param_groups"][0]["zigs"]["step"] == before
    assert (skipped > 0) == (dtype is torch.float16)
    assert optimizer.group_sparsity == 0.5
    assert all(p.isfinite().all() for p in gm.parameters())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_parameters_of_any_floating_type(dtype):
    model = make_net().to(dtype)
    gm = fx_oto.prepare(model, IMAGE.to(dtype))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, start_step=2, end_step=30)
    train(gm, optimizer, 32, dtype=dtype)
    assert optimizer.group_sparsity == 0.5
    assert {p.dtype for p in gm.parameters()} == {dtype}
    assert fx_oto.compress(gm)(IMAGE.to(dtype)).dtype == dtype


def test_maximising_is_minimising_the_negative():
    """The same training, spelled in two ways; the ZIGs chosen are the same too."""
    options = {"target_group_sparsity": 0.5, "start_step": 2, "end_step": 8, "lr": 0.05, "momentum": 0.9}
    down, up = prepared(), prepared()
    optimizers = [fx_oto.DHSPG(down, torch.optim.SGD, **options)]
    optimizers.append(fx_oto.DHSPG(up, torch.optim.SGD, maximize=True, **options))
    for image, label in batches(12):
        for gm, optimizer, sign in zip((down, up), optimizers, (1, -1), strict=True):
            optimizer.zero_grad()
            (sign * F.cross_entropy(gm(image), label)).backward()
            optimizer.step()
    for left, right in zip(down.parameters(), up.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert optimizers[0].group_sparsity == 0.5


def test_the_closures_loss_is_returned_and_kept():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)

    def closure():
        optimizer.zero_grad()
        loss = gm(IMAGE).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(10)]
    assert [loss for _, _, loss in optimizer.trajectory.rows()] == losses
    assert losses[0] > 0


def test_frozen_parameters_are_never_written():
    model = make_net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    gm = fx_oto.prepare(model, IMAGE)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"12 of the 32 ZIGs are left alone"):
        optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, start_step=1, end_step=5)
    train(gm, optimizer, 6)
    assert torch.equal(model[0].weight, before)
    assert fx_oto.partition(gm).removed().tolist() == [0, 16]


def test_groups_and_state_are_the_bases():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, momentum=0.9, target_group_sparsity=0.5, total_steps=9)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1})
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.05, 0.1]
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state


def test_a_copy_of_the_model_can_be_trained_apart():
    gm = prepared()
    before = copy.deepcopy(gm)
    twin = copy.deepcopy(gm)
    train(twin, fx_oto.DHSPG(twin, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9), 9)
    assert fx_oto.partition(twin).group_sparsity() == 0.5
    for left, right in zip(gm.parameters(), before.parameters(), strict=True):
        assert torch.equal(left, right)
