"""Pruning at once: what an optimizer would choose is zero, and nothing else has changed."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from support.training import IMAGE, batches, make_net, prepared, train
from torch import nn

import fx_oto


def loss_of(gm, batch):
    image, label = batch
    return F.cross_entropy(gm(image), label)


@pytest.mark.parametrize(
    "target", [{"target_group_sparsity": 0.5}, {"target_params": 0.4}, {"target_macs": 0.3}, {"target_latency": 0.98}]
)
def test_a_target_is_reached_and_the_model_can_be_cut(target):
    gm = prepared()
    reached = fx_oto.prune(gm, **target)
    name, value = next(iter(target.items()))
    name = name.removeprefix("target_").replace("_", " ")
    assert reached[name] >= value if name == "group sparsity" else reached[name] <= value
    small = fx_oto.compress(gm)
    cost, full = fx_oto.cost(small, IMAGE), fx_oto.cost(make_net(), IMAGE)
    assert reached["params"] == cost.params / full.params
    torch.testing.assert_close(small.eval()(IMAGE), gm.eval()(IMAGE))


def test_the_smallest_go():
    gm = prepared()
    before = {name: p.detach().clone() for name, p in gm.named_parameters()}
    fx_oto.prune(gm, target_group_sparsity=0.5)
    for family, zero in zip(fx_oto.partition(gm).families, fx_oto.partition(gm).zeros(), strict=True):
        squares = ((before[s.tensor].movedim(s.dim, 0).square(), s.index) for s in family.variables)
        norms = sum(square.reshape(len(square), -1).sum(1)[index].sum(1) for square, index in squares)
        assert norms[zero].max() <= norms[~zero].min()
    for name, p in gm.named_parameters():
        assert ((p == before[name]) | (p == 0)).all()


@pytest.mark.parametrize("saliency", ["otov2", "taylor1", "taylor2", "hesso", "blend"])
def test_gradients_are_scored_and_left_as_they_were(saliency):
    gm, data = prepared(), list(batches(3))
    loss_of(gm, data[0]).backward()
    before = [(p.grad, p.grad.clone()) for p in gm.parameters()]
    seen = []

    def watched(gm, batch):
        seen.append(gm.training)
        return loss_of(gm, batch)

    fx_oto.prune(gm, target_macs=0.5, saliency=saliency, data=data, loss=watched)
    assert gm.training
    assert seen == [False] * 6  # three for the gradients, three for the statistics
    for p, (gradient, value) in zip(gm.parameters(), before, strict=True):
        assert p.grad is gradient
        assert torch.equal(p.grad, value)


def test_taylor_takes_what_the_loss_does_not_need():
    """A layer of large weights that the next one ignores: magnitude keeps it, the gradients do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        model[0].weight[:5] *= 10
        model[2].weight[:, :5] = 0
    x = torch.randn(32, 6)
    y = model(x).detach() + 0.1 * torch.randn(32, 2)
    for saliency, gone in (("magnitude", range(5, 10)), ("taylor1", range(5)), (None, range(5))):
        gm = fx_oto.prepare(copy.deepcopy(model), x[:2])
        data = [(x[i::4], y[i::4]) for i in range(4)]
        fx_oto.prune(
            gm, target_group_sparsity=0.5, saliency=saliency, data=data, loss=lambda gm, b: F.mse_loss(gm(b[0]), b[1])
        )
        assert fx_oto.partition(gm).zeros()[0].nonzero().flatten().tolist() == list(gone)


@pytest.mark.parametrize("kind", ["tuple", "tensor", "loader", "generator", "dict"])
def test_statistics_of_batch_normalizations_are_estimated_anew(kind):
    """They are those of the pruned model over the data, whatever the batches are; without data they stay."""
    torch.manual_seed(0)
    images = torch.randn(6, 8, 3, 8, 8, dtype=torch.float64) * 3 + 1
    data = {
        "tuple": [(image, None) for image in images],
        "tensor": list(images),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images.flatten(0, 1)), batch_size=8),
        "generator": (image for image in images),
        "dict": [{"input": image} for image in images],
    }[kind]
    gm = prepared()
    stale = {name: value.clone() for name, value in gm.named_buffers() if "running" in name}
    fx_oto.prune(gm, target_macs=0.5, data=data)
    first = gm.get_submodule("0")(images.flatten(0, 1))
    torch.testing.assert_close(gm.get_buffer("1.running_mean"), first.mean((0, 2, 3)))
    assert gm.get_submodule("1").momentum == 0.1
    again = prepared()
    fx_oto.prune(again, target_macs=0.5)
    assert all(torch.equal(again.get_buffer(name), value) for name, value in stale.items())


def test_dropout_does_not_disturb_the_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.9), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 2))
    x = torch.randn(64, 6)
    gm = fx_oto.prepare(model, x[:2])
    fx_oto.prune(gm, target_group_sparsity=0.3, data=[x])
    torch.testing.assert_close(gm.get_buffer("2.running_mean"), gm.get_submodule("0")(x).mean(0))
    assert all(module.training for module in gm.modules())


def test_a_second_pruning_goes_on():
    gm = prepared()
    fx_oto.prune(gm, target_group_sparsity=0.25)
    first = fx_oto.partition(gm).zeros()
    assert fx_oto.prune(gm, target_group_sparsity=0.5)["group sparsity"] == 0.5
    assert all((now | ~then).all() for now, then in zip(fx_oto.partition(gm).zeros(), first, strict=True))


def test_a_compact_model_can_be_trained_on():
    gm = prepared()
    fx_oto.prune(gm, target_macs=0.3, data=[image for image, _ in batches(4)])
    small = fx_oto.compress(gm)
    train(small, torch.optim.SGD(small.parameters(), lr=0.05), 5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"saliency": "taylor1", "target_macs": 0.5},
            fx_oto.SettingsError,
            "'taylor1' reads gradients: give data",
        ),
        ({}, fx_oto.SettingsError, "give one of target_group_sparsity"),
        ({"target_macs": 0.5, "allocation": "even"}, fx_oto.SettingsError, "allocation must be"),
        ({"target_macs": 0.5, "unprunable": ["nowhere"]}, fx_oto.SettingsError, "'nowhere' in unprunable"),
        ({"target_macs": 0.001}, fx_oto.SettingsError, r"target_macs=0.001 cannot be reached"),
        (
            {"target_macs": 0.5, "saliency": "taylor1", "loss": loss_of},
            fx_oto.SettingsError,
            "data held no batch",
        ),
    ],
)
def test_settings_that_cannot_work_change_nothing(settings, error, message):
    gm = prepared()
    before = copy.deepcopy(gm.state_dict())
    with pytest.raises(error, match=message):
        fx_oto.prune(gm, **settings)
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (lambda gm: 0.5, "found 0.5"),
        (lambda gm: None, "found None"),
        (lambda gm: next(gm.parameters()).mean().detach(), "found one that depends on no parameter that is trained"),
        (lambda gm: next(gm.parameters()).flatten()[:3], r"found one of shape \(3,\)"),
    ],
)
def test_what_is_no_loss_is_refused(value, found):
    gm = prepared()
    with pytest.raises(fx_oto.SettingsError, match=rf"loss\(gm, batch\) must return a tensor of one element.*{found}"):
        fx_oto.prune(gm, target_macs=0.5, data=list(batches(2)), loss=lambda gm, batch: value(gm))


def test_a_loss_that_fails_changes_nothing():
    gm = prepared()
    before = copy.deepcopy(gm.state_dict())

    def broken(gm, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fx_oto.prune(gm, target_macs=0.5, saliency="taylor1", data=list(batches(2)), loss=broken)
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())
    assert all(p.grad is None for p in gm.parameters())


def test_nothing_to_compress_recommends_it():
    with pytest.raises(fx_oto.NothingToCompressError, match=r"fx_oto\.prune\(gm, target_macs=0\.5\)"):
        fx_oto.compress(prepared())


class Once(torch.utils.data.IterableDataset):
    """Images that can be read once."""

    def __init__(self, images):
        self.images = iter(images)

    def __iter__(self):
        return self.images


def normed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    net(torch.randn(64, 1, 8, 8) * 3 + 2)
    return net, fx_oto.prepare(net, torch.randn(2, 1, 8, 8))


def statistics(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


@pytest.mark.parametrize("data", [(), [], iter(())])
def test_without_data_running_statistics_stay(data):
    net, gm = normed()
    before = statistics(net)
    told = not isinstance(data, tuple)
    with pytest.warns(UserWarning, match="data held no batch") if told else nullcontext():
        fx_oto.prune(gm, target_group_sparsity=0.3, data=data)
    kept = (net[0].weight != 0).flatten(1).any(1)
    for name, buffer in statistics(net).items():
        assert torch.equal(
            buffer[kept] if buffer.dim() else buffer, before[name][kept] if buffer.dim() else before[name]
        )
    assert int(net[1].num_batches_tracked) == 1


def test_data_that_can_be_read_once_is_told():
    net, gm = normed()
    before = statistics(net)
    images = torch.randn(16, 1, 8, 8)
    loader = torch.utils.data.DataLoader(Once(images), 8)
    with pytest.warns(UserWarning, match="data could be read once only"):
        fx_oto.prune(gm, target_group_sparsity=0.3, data=loader, loss=lambda gm, batch: gm(batch).square().mean())
    assert int(net[1].num_batches_tracked) == int(before["1.num_batches_tracked"])
    net, gm = normed()
    generator = (images[i : i + 8] for i in (0, 8))
    fx_oto.prune(gm, target_group_sparsity=0.3, data=generator, loss=lambda gm, batch: gm(batch).square().mean())
    assert int(net[1].num_batches_tracked) == 2


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("good", [0, 1])
def test_a_batch_that_fails_leaves_all_as_it_was(momentum, good):
    net, gm = normed()
    net[1].momentum = momentum
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        fx_oto.prune(gm, target_group_sparsity=0.3, data=[torch.randn(4, 1, 8, 8)] * good + [torch.randn(4, 1, 9, 9)])
    assert net[1].momentum == momentum
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_stops_it_leaves_all_as_it_was(stop, dtype):
    net, _ = normed()
    gm = fx_oto.prepare(net.to(dtype), torch.randn(2, 1, 8, 8, dtype=dtype))
    before = copy.deepcopy(net.state_dict())

    def batches():
        yield torch.randn(4, 1, 8, 8, dtype=dtype)
        raise stop

    with pytest.raises(stop):
        fx_oto.prune(gm, target_group_sparsity=0.3, data=batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert fx_oto.partition(gm).group_sparsity() == 0


@pytest.mark.parametrize("data", [torch.randn(4, 1, 8, 8), "train", 3])
def test_data_that_is_no_batches(data):
    _, gm = normed()
    with pytest.raises(fx_oto.SettingsError, match=f"data must be batches, .*; found {type(data).__name__}: is it"):
        fx_oto.prune(gm, target_group_sparsity=0.3, data=data)
