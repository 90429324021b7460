"""A pruning evaluated before it is made: the value is that of the compact model, and nothing of the user's changes."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from support.training import IMAGE, make_net
from torch import nn

import fx_oto

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64)
TOKENS = torch.randn(3, 5, 8, dtype=torch.float64)


class Attention(nn.Module):
    """A layer whose masks alone would change nothing."""

    def __init__(self):
        super().__init__()
        self.attend, self.norm, self.head = (
            nn.MultiheadAttention(8, 4, batch_first=True),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]))


class Recurrent(nn.Module):
    """The same of a recurrence."""

    def __init__(self):
        super().__init__()
        self.recurrence, self.head = nn.LSTM(8, 12, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.recurrence(x)[0])


NETWORKS = {
    "convolutions": (make_net, IMAGES),
    "attention": (Attention, TOKENS),
    "recurrence": (Recurrent, TOKENS),
}


def prepared(make=make_net, inputs=IMAGE):
    return fx_oto.prepare(randomise(make().double()).eval(), inputs)


def loss_of(inputs):
    def evaluate(gm):
        with torch.no_grad():
            return {"loss": gm(inputs).square().mean(), "first": float(gm(inputs).flatten()[0])}

    return evaluate


def state_of(gm):
    tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    content = {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}
    modes = {name: module.training for name, module in gm.named_modules()}
    grads = {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in gm.named_parameters()}
    wanted = {name: (p.requires_grad, p.dtype, id(p)) for name, p in gm.named_parameters()}
    numpy = sys.modules["numpy"].random.get_state()
    dice = torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]
    return content, modes, grads, wanted, dice


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_evaluated_is_what_compressing_gives(name):
    make, inputs = NETWORKS[name]
    gm = prepared(make, inputs)
    found = fx_oto.sensitivity(gm, loss_of(inputs), fractions=(0.25, 0.5))
    assert {trial.position for trial in found} == set(range(len(fx_oto.partition(gm).families)))
    assert found.baseline.metrics == {key: float(value) for key, value in loss_of(inputs)(gm).items()}
    for trial in found:
        assert trial.removed == math.floor(trial.fraction * trial.zigs) > 0
        cut = copy.deepcopy(gm)
        zigs = fx_oto.partition(cut)
        family = zigs.families[trial.position]
        tensors = dict(cut.named_parameters())
        square = sum(
            tensors[slot.tensor].detach().movedim(slot.dim, 0)[slot.index].flatten(1).square().sum(1)
            for slot in family.variables
        )
        zigs.zero_zigs_(trial.position, square.argsort()[: trial.removed])
        small = fx_oto.compress(cut)
        expected = loss_of(inputs)(small)
        for metric, value in trial.metrics.items():
            assert value == pytest.approx(float(expected[metric]), rel=1e-10, abs=1e-12)
            assert value != pytest.approx(found.baseline.metrics[metric], rel=1e-6)
        cost = fx_oto.cost(small, inputs)
        if len(inputs) == len(IMAGE) or make is not make_net:
            assert (trial.params, trial.macs) == (cost.params, cost.macs)
        assert trial.params == cost.params


def test_nothing_is_changed_whatever_evaluate_does():
    torch.manual_seed(0)
    model = make_net().float()
    gm = fx_oto.prepare(model, IMAGE.float())
    with torch.no_grad():
        model[0].weight[3, 1] = -0.0  # a sign that == does not see
        model[1].running_mean[2] = math.nan
    gm(IMAGES.float()).square().mean().backward()
    gm.train()
    gm.get_submodule("1").eval()
    before, starts = state_of(gm), []

    def evaluate(gm):
        starts.append((torch.rand(1).item(), random.random(), sys.modules["numpy"].random.rand(), gm.training))
        gm.train()
        optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
        F.cross_entropy(gm(IMAGES.float()), torch.arange(4)).backward()
        optimizer.step()
        gm.requires_grad_(False)
        gm.zero_grad()
        gm.double()
        gm.note = "set by evaluate"
        return 1.0

    found = fx_oto.sensitivity(gm, evaluate)
    assert state_of(gm) == before
    assert not hasattr(gm, "note")
    assert len(starts) == 1 + len(found)
    assert len(set(starts)) == 1
    assert starts[0][3] is False


def test_a_buffer_whose_elements_share_memory_is_kept_as_well():
    gm = prepared()
    gm.register_buffer("shared", torch.arange(3.0)[:, None].expand(3, 4))

    def evaluate(gm):
        gm.shared[:, 0] += 1
        return gm.shared.sum()

    found = fx_oto.sensitivity(gm, evaluate)
    assert {trial.metrics["value"] for trial in found} == {24.0}
    assert gm.shared[:, 2].tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_changed_when_evaluate_fails(error):
    gm = prepared()
    before, calls = state_of(gm), []

    def evaluate(gm):
        calls.append(fx_oto.partition(gm).removed().tolist())
        gm.train()
        torch.rand(3)
        gm(IMAGES)
        if len(calls) == 3:
            raise error("stop")
        return 0.5

    with pytest.raises(error, match="stop") as caught:
        fx_oto.sensitivity(gm, evaluate)
    assert calls == [[0, 0], [3, 0], [6, 0]]
    assert state_of(gm) == before
    if error is ValueError:
        note = (
            "raised by evaluate, called by fx_oto.sensitivity with 6 of the 12 ZIGs of '0.weight' zero; gm is as it was"
        )
        assert caught.value.__notes__ == [note]


def test_zigs_that_are_zero_stay_so_and_count():
    gm = prepared()
    zigs = fx_oto.partition(gm)
    zigs.zero_zigs_(0, torch.tensor([1, 5, 7, 8]))
    zigs.zero_zigs_(1, torch.tensor([2]))
    seen = []

    def evaluate(gm):
        seen.append([zero.nonzero().flatten().tolist() for zero in fx_oto.partition(gm).zeros()])
        return len(seen)

    found = fx_oto.sensitivity(gm, evaluate, families=0, fractions=(0.25, 0.5, 1.0))
    assert [trial.removed for trial in found] == [4, 6, 11]
    assert len(seen) == 3  # a quarter of them is zero already
    assert all({1, 5, 7, 8} <= set(zero) and others == [2] for zero, others in seen)
    assert found.trials[0].metrics == found.baseline.metrics == {"value": 1.0}
    assert found.baseline.params == zigs.params.left(zigs.removed())


def test_the_smallest_go_first_or_those_that_a_saliency_names():
    gm = prepared()

    def tried(saliency):
        seen = []
        fx_oto.sensitivity(
            gm,
            lambda gm: seen.append(fx_oto.partition(gm).zeros()[0].nonzero().flatten().tolist()) or 0.0,
            families="0.*",
            fractions=0.25,
            saliency=saliency,
        )
        return seen[1]

    tensors = dict(gm.named_parameters())
    parts = [tensors["0.weight"].flatten(1), tensors["1.weight"][:, None], tensors["1.bias"][:, None]]
    norms = torch.cat(parts, 1).norm(dim=1)
    assert tried("magnitude") == norms.argsort()[:3].sort().values.tolist()
    assert tried(lambda zigs: [family.norm for family in zigs]) == norms.argsort()[-3:].sort().values.tolist()
    gm(IMAGES).square().mean().backward()
    dots = sum((part * p.grad.reshape(part.shape)).sum(1) for part, p in zip(parts, gm.parameters(), strict=False))
    assert tried("taylor1") == dots.abs().argsort()[:3].sort().values.tolist()


def test_tables_and_limits():
    gm = prepared()
    Result = namedtuple("Result", ["loss", "accuracy"])

    def evaluate(gm):
        gone = fx_oto.partition(gm).removed().tolist()
        return Result(1 + gone[0] / 10, 0.9 - gone[1] / 100)

    found = fx_oto.sensitivity(gm, evaluate)
    assert found.metrics == ("loss", "accuracy")
    assert found.min_kept("loss", rise=0.65) == {"0.weight": 6, "3.weight": 5}
    assert found.min_kept("accuracy", drop=0.11) == {"0.weight": 3, "3.weight": 10}
    assert found.min_kept("accuracy", drop=0.01) == {"0.weight": 3, "3.weight": 20}
    optimizer = fx_oto.DHSPG(
        gm, lr=0.1, target_group_sparsity=0.1, total_steps=9, min_kept=found.min_kept("loss", rise=0)
    )
    assert optimizer.limits.most == (0, 15)
    lines = str(found).splitlines()
    assert lines[0].split() == ["family", "zero", "params", "left", "MACs/sample", "left", "loss", "accuracy"]
    assert lines[3].split()[:4] == ["0.weight", "3", "of", "12"]
    assert lines[3].endswith("1.3 (+0.3)  0.9 (+0)")
    assert "<table>" in found._repr_html_()
    assert found.to_markdown().startswith("| family")
    read = json.loads(found.to_json())
    assert read["trials"][0]["metrics"] == {"loss": 1.3, "accuracy": 0.9}
    assert read["baseline"]["params"] == sum(p.numel() for p in gm.parameters())
    with pytest.raises(AttributeError):
        found.baseline = None


def test_nan_is_never_within_limits_and_null_in_json():
    gm = prepared()
    found = fx_oto.sensitivity(gm, lambda gm: math.nan if fx_oto.partition(gm).group_sparsity() > 0.2 else 1.0)
    assert found.min_kept(rise=1.0) == {"0.weight": 6, "3.weight": 15}
    assert json.loads(found.to_json())["trials"][-1]["metrics"] == {"value": None}
    assert found.plot().to_svg()


def test_figures():
    pytest.importorskip("matplotlib")
    gm = prepared()
    few = fx_oto.sensitivity(gm, loss_of(IMAGES))
    lines = few.plot("loss").figure.axes[0]
    assert lines.get_title() == "loss"
    assert [line.get_label() for line in lines.get_lines()] == ["as it is", "0.weight", "3.weight"]
    expected = [few.baseline.metrics["loss"], *(t.metrics["loss"] for t in few if t.position == 0)]
    assert lines.get_lines()[1].get_ydata().tolist() == expected
    deep = nn.Sequential(
        *(layer for _ in range(50) for layer in (nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 2)
    ).double()
    many = fx_oto.sensitivity(fx_oto.prepare(deep, TOKENS[0, :, :4]), lambda gm: gm(TOKENS[0, :, :4]).sum())
    (heat,) = many.plot().figure.axes
    assert [label.get_text() for label in heat.get_yticklabels()] == [f"{2 * i}.weight" for i in range(50)]
    assert len(heat.texts) == 150


def test_wrong_arguments():
    gm, calls = prepared(), []

    def refused(match, error=fx_oto.SettingsError, value=1.0, **options):
        with pytest.raises(error, match=match):
            fx_oto.sensitivity(gm, lambda gm: calls.append(1) or value, **options)

    refused(r"pattern 'stem\.\*' in families matches no family; names look like '0.weight'", families="stem.*")
    refused(r"positions from 0 to 1 in fx_oto.partition\(gm\).families; found 2", families=[0, 2])
    refused(r"fractions must be above 0 and at most 1, found 1.5", fractions=(0.5, 1.5))
    refused(r"fractions must be above 0 and at most 1, found 0;", fractions=[0])
    refused(r"fractions is empty: give some", fractions=())
    refused(r"saliency must be one of otov2, .*; found 'size'", saliency="size")
    refused(r"saliency='otov2' reads gradients, and no parameter of gm has one: call backward\(\)", saliency="otov2")
    refused(
        r"a tensor of scores for each family, .*; expected tensors of shapes \(12,\), \(20,\), found \(1,\)",
        saliency=lambda zigs: [torch.ones(1)],
    )
    assert not calls
    refused(r"evaluate must return a number, .* found value: NoneType", fx_oto.InputError, None)
    refused(r"evaluate must return a number, .* found loss: str", fx_oto.InputError, {"loss": "0.5", "accuracy": 1})
    refused(r"evaluate must return a number, .* found value: Tensor", fx_oto.InputError, torch.ones(2))
    refused(r"evaluate must return a number, .* found nothing", fx_oto.InputError, {})
    names = iter(("loss", "lose"))
    with pytest.raises(fx_oto.InputError, match=r"the same names every time; found \['loss'\], then \['lose'\]"):
        fx_oto.sensitivity(gm, lambda gm: {next(names): 0.5})
    with pytest.raises(
        fx_oto.MissingResultError,
        match=r"expected the GraphModule that fx_oto.prepare\(model, example_inputs\) returns",
    ):
        fx_oto.sensitivity(make_net(), len)
    frozen = fx_oto.prepare(nn.Linear(4, 2), torch.randn(2, 4))
    with pytest.raises(fx_oto.SettingsError, match=r"no axis of this model can be pruned: print\(fx_oto.partition"):
        fx_oto.sensitivity(frozen, lambda gm: 1.0)


def test_wrong_metrics():
    found = fx_oto.sensitivity(prepared(), lambda gm: (1.0, 2), families=0, fractions=0.5)
    with pytest.raises(fx_oto.SettingsError, match=r"metric must be one of 'value 0', 'value 1'; found none"):
        found.min_kept(drop=1)
    with pytest.raises(fx_oto.SettingsError, match=r"metric must be one of .*; found 'accuracy'"):
        found.plot("accuracy")
    with pytest.raises(fx_oto.SettingsError, match=r"give drop=…, .*, or rise=…, .* such as a loss; found neither"):
        found.min_kept("value 0")
    with pytest.raises(fx_oto.SettingsError, match=r"found both"):
        found.min_kept("value 0", drop=1, rise=1)


def test_figures_without_matplotlib(monkeypatch):
    found = fx_oto.sensitivity(prepared(), lambda gm: 1.0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(fx_oto.MissingPackageError, match=r"pictures need matplotlib, .*: pip install 'fx-oto\[plot\]'"):
        found.plot()
