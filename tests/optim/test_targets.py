"""Targets and limits: what is asked is what is reached, at the real price, whatever λ is."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.networks import CARN, DemoNet, StackedUnets
from support.random_networks import by_plan, by_seed
from support.random_tokens import TOKENS
from support.training import IMAGE, make_net, prepared, train
from torch import nn

import fx_oto
from fx_oto.optim.latency import Latency
from fx_oto.optim.limits import Limits, Rules
from fx_oto.optim.selection import ranked, select
from fx_oto.optim.targets import Target
from fx_oto.zigs.families import Family, Slot
from fx_oto.zigs.partition import Partition

WINDOW = {"start_step": 1, "end_step": 5, "saliency_batches": 1}


def step_through(gm, optimizer, image, steps=6):
    for _ in range(steps):
        optimizer.zero_grad()
        out = gm(image)
        F.mse_loss(out, torch.ones_like(out)).backward()
        optimizer.step()


NETWORKS = {
    "demo": (lambda: DemoNet(width=8), (2, 3, 16, 16)),
    "unets": (lambda: StackedUnets((8, 16, 32), 8), (2, 3, 16, 16)),
    "carn": (lambda: CARN(8), (2, 3, 8, 8)),
}


@pytest.mark.parametrize(("optimizer", "lam"), [("DHSPG", None), ("DHSPG", 1e-9), ("DHSPG", 1e3), ("HESSO", None)])
@pytest.mark.parametrize("quantity", ["group_sparsity", "params", "macs"])
@pytest.mark.parametrize("name", ["demo", "carn", pytest.param("unets", marks=pytest.mark.slow)])
def test_what_is_asked_is_reached_within_the_price_of_one_group(name, quantity, optimizer, lam):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, image = make(), torch.randn(shape)
    gm = fx_oto.prepare(model, image)
    settings = {f"target_{quantity}": 0.6, "lr": 1e-3, **WINDOW} | ({"lam": lam} if optimizer == "DHSPG" else {})
    step_through(gm, optimizer := getattr(fx_oto, optimizer)(gm, torch.optim.SGD, **settings), image)
    zigs = fx_oto.partition(gm)
    compact, full = fx_oto.cost(fx_oto.compress(gm), image), fx_oto.cost(model, image)
    reached = optimizer.reached()
    assert reached["params"] == compact.params / full.params
    assert reached["macs"] == compact.macs / full.macs
    prices = {"params": zigs.params, "macs": zigs.macs}
    if quantity == "group_sparsity":
        rounded = math.floor if isinstance(optimizer, fx_oto.HESSO) else math.ceil
        assert reached["group sparsity"] == rounded(0.6 * zigs.num_zigs) / zigs.num_zigs
    else:
        price = prices[quantity]
        dearest = float(price.marginal.max()) / price.total
        assert 0.6 - dearest <= reached[quantity] <= 0.6


def test_prices_are_those_of_the_compact_model():
    """On random networks; where a channel is kept so that something of a value is left, a little more remains."""
    image = torch.randn(2, 4, 6, 6)
    compared = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model = by_seed(seed)
        gm = fx_oto.prepare(model, image)
        zigs, full = fx_oto.partition(gm), fx_oto.cost(gm, image)
        assert (zigs.params.total, zigs.macs.total) == (full.params, full.macs)
        if not zigs.num_zigs or not zigs.zero_(0.5, torch.Generator().manual_seed(seed)).removed().any():
            continue
        compared += prices_hold(gm, image, seed)
    assert compared > 10


def prices_hold(gm, image, about):
    """Assert that what is left costs what prices say; returns whether it could be told, without a warning."""
    zigs = fx_oto.partition(gm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compact = fx_oto.cost(fx_oto.compress(gm, verify=False), image)
    if not caught:
        assert zigs.macs.left(zigs.removed()) == compact.macs, about
        assert zigs.params.left(zigs.removed()) <= compact.params, about  # what is folded becomes a bias
    return not caught


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_prices_of_tokens_are_those_of_the_compact_model(attention):
    """Cut at random again and again; what no output depends on goes, whether a mask follows it or not."""
    image, compared = torch.randn(2, 4, 6, 6), 0
    for seed in range(8):
        torch.manual_seed(seed)
        choose = random.Random(seed)
        plan = [(choose.choice(sorted(TOKENS)), choose.randrange(999)) for _ in range(choose.randint(1, 7))]
        gm = fx_oto.prepare(by_plan([], plan), image, attention=attention)
        state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
        for fraction in (0.3, 0.6, 0.9):
            gm.load_state_dict(state)
            fx_oto.partition(gm).zero_(fraction, torch.Generator().manual_seed(seed))
            compared += prices_hold(gm, image, plan)
    assert compared > 15


def test_groups_that_take_part_in_less_work_are_priced_apart():
    """Only the first five of twelve channels are multiplied with each other."""

    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.second(x), x[..., :5] @ x[..., :5].transpose(1, 2)

    x = torch.randn(2, 6, 4)
    for gone in ([0, 1, 2, 3], [8, 9, 10, 11], [3, 4, 5, 6]):
        gm = fx_oto.prepare(Gram(), x)
        for i, family in enumerate(fx_oto.partition(gm).families):
            mine = family.slots[0].index[:, 0].tolist()
            fx_oto.partition(gm).zero_zigs_(i, torch.tensor([p for p, c in enumerate(mine) if c in gone], dtype=int))
        zigs = fx_oto.partition(gm)
        compact = fx_oto.cost(fx_oto.compress(gm), x)
        assert zigs.macs.left(zigs.removed()) == compact.macs
        assert zigs.params.left(zigs.removed()) == compact.params


def test_prices_depend_on_what_else_is_removed():
    """A middle layer of 12 × 20 × 9 weights: half of one side halves what the other side saves."""
    zigs = fx_oto.partition(prepared())
    nothing, left, right = torch.tensor([0, 0]), torch.tensor([6, 0]), torch.tensor([0, 10])
    first, second = (zigs.params.left(nothing) - zigs.params.left(removed) for removed in (left, right))
    both = zigs.params.left(nothing) - zigs.params.left(left + right)
    assert first + second - both == 6 * 10 * 9


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"min_kept": 9}, [3, 11]),
        ({"min_kept": 0.5}, [6, 10]),
        ({"min_kept": {"3.weight": 18}}, [11, 2]),
        ({"min_kept": {"0": 10, "*": 2}}, [2, 18]),
        ({"max_group_sparsity": {"0": 0.0}}, [0, 19]),
        ({"max_group_sparsity": {"0.weight": 0.25, "*": 0.9}}, [3, 18]),
        ({"max_group_sparsity": 0.5}, [6, 10]),
        ({"unprunable": ["0"]}, [0, 19]),
    ],
)
def test_limits_of_each_family_are_kept(options, most):
    """As many as the limits allow are asked for, so the limits are what is found."""
    gm = prepared()
    target = sum(most) / 32
    optimizer = fx_oto.DHSPG(
        gm, torch.optim.SGD, lr=0.05, target_group_sparsity=target, **({"min_kept": 0} | options), **WINDOW
    )
    train(gm, optimizer, 6)
    assert fx_oto.partition(gm).removed().tolist() == most


@pytest.mark.parametrize("optimizer", [fx_oto.DHSPG, fx_oto.HESSO])
def test_channels_are_rounded(optimizer):
    """12 and 20 channels: kept in fours, as few groups as bring the MACs to the target."""
    gm = prepared()
    made = optimizer(gm, torch.optim.SGD, lr=0.05, target_macs=0.4, round_to=4, periods=2, **WINDOW)
    train(gm, made, 6)
    kept = torch.tensor([12, 20]) - fx_oto.partition(gm).removed()
    assert (kept % 4 == 0).all()
    assert made.reached()["macs"] <= 0.4
    one_more = [fx_oto.partition(gm).removed() - torch.tensor(step) for step in ([4, 0], [0, 4])]
    macs = fx_oto.partition(gm).macs
    assert any(macs.left(removed) > 0.4 * macs.total for removed in one_more)


def test_channels_that_go_in_blocks_are_rounded_as_channels():
    """A flatten gives each ZIG four columns, and a grouped convolution makes its groups' channels go together."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 1, groups=4), nn.ReLU(), nn.Conv2d(24, 5, 1))
    gm = fx_oto.prepare(net, torch.randn(2, 3, 4, 4))
    zigs = fx_oto.partition(gm)
    limits = Limits.of(zigs.families, [False] * len(zigs.families), Rules(min_kept=0.0, round_to=6))
    for family, step in zip(zigs.families, limits.steps, strict=True):
        for slot in family.variables:
            assert step * slot.index.shape[1] % 6 == 0


def test_a_measured_latency_is_reached(monkeypatch):
    """The model's widths decide; the clock is replaced by the work that a forward pass does."""
    monkeypatch.setattr(Latency, "_measure", lambda self, removed: 1 - sum(removed) / 64)
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_latency=0.75, **WINDOW)
    train(gm, optimizer, 6)
    assert fx_oto.partition(gm).removed().sum() == 16
    assert optimizer.reached()["latency"] == 0.75
    assert "latency left 0.75" in str(fx_oto.report(gm))


def test_latency_is_measured_on_the_compact_model():
    net = nn.Sequential(nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 512))
    gm = fx_oto.prepare(net, torch.randn(256, 512))
    before = [p.clone() for p in gm.parameters()]
    latency = Latency(gm)
    assert latency.left(torch.tensor([0])) == 1
    assert 0 < latency.left(torch.tensor([4000])) < 0.7
    assert latency.left(torch.tensor([4000])) == latency.left(torch.tensor([4000]))
    assert fx_oto.partition(gm).group_sparsity() == 0
    assert all(torch.equal(a, b) for a, b in zip(gm.parameters(), before, strict=True))


def test_selection_takes_the_highest_scores_and_what_is_gone():
    zigs: Partition = fx_oto.partition(prepared())
    limits = Limits((2, 2), (1, 1))
    scores = [torch.arange(12.0), torch.arange(20.0) / 10]
    target = Target("macs", 0.5, zigs.macs)

    def by_score(left, gone=()):
        order = ranked(scores, gone)
        return select(order, [one.scores for one in order], limits, target, left)

    chosen = by_score(0.0)
    assert [part.tolist() for part in chosen] == [[10, 11], [18, 19]]
    gone = [torch.tensor([3]), torch.tensor([], dtype=torch.int64)]
    one = 1 - 1e-6
    assert [part.tolist() for part in by_score(one, gone)] == [[3], []]
    assert [part.tolist() for part in by_score(0.87, gone)] == [[3, 11], []]


def test_asked_and_reached_are_reported():
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_macs=0.3, total_steps=20)
    for image in torch.randn(20, 8, 3, 8, 8, dtype=torch.float64):
        optimizer.zero_grad()
        loss = gm(image).square().mean()
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
    text = str(fx_oto.report(gm))
    assert "asked: macs left 0.3000; reached: group sparsity 0." in text
    rows = fx_oto.report(gm).training.rows()
    assert [step for step, _, _ in rows] == list(range(20))
    assert rows[0][1] == 0
    assert rows[-1][1] == optimizer.group_sparsity
    assert all(loss is not None and math.isfinite(loss) for _, _, loss in rows)
    small = fx_oto.compress(gm)
    assert fx_oto.report(small).training.rows() == rows
    assert "<table>" in fx_oto.report(small)._repr_html_()
    assert fx_oto.report(fx_oto.prepare(make_net(), IMAGE)).training is None


class Layers(nn.Module):
    """Two transformer layers, whose heads and widths are groups of their own, and an MLP of another width."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 4, 12, batch_first=True) for _ in range(2))
        self.other = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.other(x)


@pytest.mark.parametrize("optimizer", ["DHSPG", "HESSO"])
def test_uniform_families_keep_equally_many(optimizer):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    gm = fx_oto.prepare(Layers(), x)
    patterns = ["layers.*.linear1", "layers.*.self_attn.in_proj_weight"]
    settings = {"target_params": 0.5, "uniform": patterns, "round_to": 2, "lr": 1e-3, **WINDOW}
    step_through(gm, getattr(fx_oto, optimizer)(gm, torch.optim.SGD, **settings), x)
    families, gone = fx_oto.partition(gm).families, fx_oto.partition(gm).removed().tolist()
    for pattern in patterns:
        counts = {count for family, count in zip(families, gone, strict=True) if family.matches(pattern)}
        assert len(counts) == 1, (pattern, counts)
    small = fx_oto.compress(gm)
    widths = [small.get_submodule(f"layers.{i}.linear1").out_features for i in range(2)]
    assert widths[0] == widths[1] < 12


ODD = Family("odd", torch.arange(7), (Slot("odd", 0, torch.arange(7).view(7, 1), True, 1),))


def test_uniform_families_of_different_sizes_keep_the_same_fraction():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 18), nn.ReLU(), nn.Linear(18, 7), nn.Linear(7, 2))
    x = torch.randn(3, 4)
    for pattern in (("0", "2"), "*[02].weight"):
        gm = fx_oto.prepare(net, x)
        settings = {"target_params": 0.5, "uniform": [pattern], "lr": 1e-3, **WINDOW}
        step_through(gm, fx_oto.DHSPG(gm, torch.optim.SGD, **settings), x)
        first, second, _ = fx_oto.partition(gm).removed().tolist()
        assert first * 18 == second * 12 > 0
    families = fx_oto.partition(gm).families
    limits = Limits.of(families, [False] * 3, Rules.of(min_kept={"0": 5}, round_to=3, uniform=[("0", "2")]))
    assert limits.most == (6, 9, 4)  # of 12, 18 and 7, in multiples of 3, and at least 5 of 12
    assert limits.parts == (2, 3, 1)


def test_uniform_limits():
    gm = fx_oto.prepare(Layers(), torch.randn(2, 5, 16))
    families = fx_oto.partition(gm).families
    alone = [family.matches("layers.1.linear1") for family in families]
    limits = Limits.of(
        families,
        alone,
        Rules.of(min_kept={"layers.0.self_attn": 3}, uniform=["layers.*.linear1", "layers.*.self_attn"]),
    )
    most = {family.name: most for family, most in zip(families, limits.most, strict=True)}
    assert most["layers.0.linear1.weight"] == most["layers.1.linear1.weight"] == 0
    assert {most[name] for name in most if "self_attn" in name} == {1}
    shared = Limits.of(families, alone, Rules.of(uniform=["layers.*.linear1", "layers.0.linear1"]))
    assert len(shared.alike) == 1
    with pytest.raises(fx_oto.SettingsError, match=r"'\*' matches in uniform .* no common divisor: .*10, .* ZIGs"):
        Limits.of([*families, ODD], [*alone, False], Rules.of(uniform=["*"]))
    with pytest.raises(fx_oto.SettingsError, match="matches no family"):
        Limits.of(families, alone, Rules.of(uniform="layer.*.linear1"))
