"""Parameters that ``forward`` does not use on the example inputs are trained as by any optimizer, and never cut."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from torch import nn

import fx_oto


class Body(nn.Sequential):
    """Layers, and what is beside them."""

    def __init__(self, **beside):
        super().__init__(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        for name, module in beside.items():
            self.add_module(name, module)

    def forward(self, x):
        return self[3](self[2](self[1](self[0](x))))


class Net(nn.Module):
    """A body and a head; what else a loss needs is that of subclasses."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def loss(self, x):
        return self(x).square().mean()


class Scaled(Net):
    """A temperature, and learned weights of losses."""

    def __init__(self):
        super().__init__()
        self.log_scale, self.weights = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))

    def loss(self, x):
        return (self.log_scale.exp() * self(x).square().mean(0) * (-self.weights).exp() + self.weights).sum()


class Projected(Net):
    """A head that the loss calls, over channels of the body, in containers that ``forward`` uses or does not."""

    def __init__(self):
        super().__init__()
        self.body = Body(aside=nn.ModuleDict({"proj": nn.Linear(16, 4)}))
        self.others = nn.ModuleList([nn.Linear(4, 4)])

    def loss(self, x):
        return super().loss(x) + self.others[0](self.body.aside["proj"](self.body(x))).square().mean()


class Masked(Net):
    """A token behind an optional argument."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(16))

    def forward(self, x, mask=None):
        x = self.body(x)
        return self.head(x if mask is None else torch.where(mask[:, None], self.token, x))

    def loss(self, x):
        return self(x, x[:, 0] > 0).square().mean()


class Clustered(Net):
    """Prototypes with two names, and a column."""

    def __init__(self):
        super().__init__()
        self.prototypes = self.again = nn.Parameter(torch.randn(5, 16))
        self.bias = nn.Parameter(torch.randn(5, 1))

    def loss(self, x):
        return super().loss(x) + (self.body(x) @ self.prototypes.t() + self.bias[:, 0]).square().mean()


class Tied(Net):
    """A head with the weight of a layer that ``forward`` runs, and a bias of its own."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(24, 16)
        self.again.weight = self.body[2].weight

    def loss(self, x):
        return super().loss(x) + self.again(F.relu(self.body[0](x))).square().mean()


class Idle(Net):
    """A layer that nothing runs, with numbers that are none."""

    def __init__(self):
        super().__init__()
        self.pooler = nn.Linear(16, 16)
        nn.init.constant_(self.pooler.bias, float("nan"))


KINDS = (Scaled, Projected, Masked, Clustered, Tied, Idle)
READS = (Projected, Masked, Clustered, Tied)  # what may have fewer channels
X = torch.randn(8, 6)


def made(kind):
    torch.manual_seed(0)
    model = kind()
    randomise(model)
    if kind is Idle:
        nn.init.constant_(model.pooler.bias, float("nan"))
    return model


def unused_of(model):
    used = {id(one) for name, one in model.named_parameters() if name.startswith(("body.0", "body.2", "head"))}
    return [name for name, one in model.named_parameters() if id(one) not in used]


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(torch.randn(8, 6, generator=generator)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def optimizer_of(gm, **options):
    settings = {"lr": 0.01, "weight_decay": 0.1, "target_params": 0.6, "total_steps": 40, **options}
    return fx_oto.DHSPG(gm, torch.optim.AdamW, **settings)


@pytest.mark.filterwarnings("ignore:these parameters have a gradient:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_trained_as_by_any_optimizer(kind):
    """Before the window, all is bit for bit what the base makes of the model's own parameters."""
    model, other = made(kind), made(kind)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer_of(fx_oto.prepare(model, X), start_step=20), 12)
    train(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1), 12)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0, equal_nan=True)
    if kind is not Idle:
        assert unused_of(model)
        assert not any(torch.equal(before[name], model.state_dict()[name]) for name in unused_of(model))


@pytest.mark.filterwarnings("ignore:these parameters have a gradient:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_they_count_for_nothing_and_the_compact_model_has_none(kind):
    model, plain = made(kind), made(Net)
    gm = fx_oto.prepare(model, X)
    of_graph = fx_oto.cost(plain, X)
    assert fx_oto.cost(gm, X) == of_graph
    assert fx_oto.partition(gm).params.total == of_graph.params
    assert fx_oto.partition(gm).explain().params == of_graph.params
    optimizer = optimizer_of(gm)
    train(model, optimizer, 40)
    assert fx_oto.report(gm).records[-1].params == (of_graph.params, of_graph.params)
    small = fx_oto.compress(gm)
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in plain.named_parameters()}
    left = fx_oto.cost(small, X).params
    assert optimizer.reached()["params"] == left / of_graph.params <= 0.6
    sliced = next(one for one in fx_oto.report(small).records if one.name == "physical-slicing")
    assert sliced.params == (of_graph.params, left)
    assert {name for name in sliced.resized if not name.startswith("zig_masks")} <= dict(
        plain.named_parameters()
    ).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_copies_hold_them(kind):
    model, other = made(kind), made(kind)
    gm, again = fx_oto.prepare(model, X), fx_oto.prepare(other, X)
    names = [name for name, _ in gm.named_parameters()]
    assert {id(one) for one in gm.parameters()} == {id(one) for one in model.parameters()}
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(gm), torch.load(buffer, weights_only=False), fx_oto.prepare(gm, X), fx_oto.prepare(gm)]
    for one in copies:
        assert [name for name, _ in one.named_parameters()] == names
    average = torch.optim.swa_utils.AveragedModel(gm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update_parameters(gm)
    for name, parameter in gm.named_parameters():
        torch.testing.assert_close(average.module.get_parameter(name), parameter, equal_nan=True)
    again.load_state_dict(gm.state_dict())
    missing, unexpected = again.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert set(unexpected) <= {"again.weight", "again"}  # second names of what gm has under another
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter, equal_nan=True)


@pytest.mark.filterwarnings("ignore:these parameters have a gradient:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_where_it_was_cut(kind):
    model, cut = made(kind), made(kind)
    train(model, optimizer := optimizer_of(fx_oto.prepare(model, X)), 10)
    resumed = optimizer_of(fx_oto.prepare(cut, X))
    cut.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 10)
    train(cut, resumed, 10)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_code_may_give_them_is_told_once_and_before_anything_is_cut(kind):
    model = made(kind)
    optimizer = optimizer_of(fx_oto.prepare(model, X), start_step=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 3)
    texts = [str(one.message) for one in caught]
    assert len(texts) == (kind in READS)
    expected = {Projected: "body.aside.proj.weight", Masked: "token", Clustered: "prototypes", Tied: "again.bias"}
    assert all(f"'{expected[kind]}'" in text and "unprunable" in text for text in texts)


@pytest.mark.filterwarnings("ignore:these parameters have a gradient:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_written_back_says_what_may_not_fit_and_what_to_keep_fits(kind):
    model = made(kind)
    gm = fx_oto.prepare(model, X)
    fx_oto.partition(gm).zero_(0.5)
    reads = (*READS, Idle)
    if kind in reads:
        with pytest.warns(fx_oto.FxOtoWarning, match="forward did not use these parameters on the example inputs: "):
            new = fx_oto.compress(gm, into=model)
    else:
        new = fx_oto.compress(gm, into=model)
        new.loss(X).backward()
    torch.testing.assert_close(new(X), model(X))


@pytest.mark.filterwarnings("ignore:forward did not use:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", [Projected, Masked, Clustered])
def test_what_they_read_can_be_kept_whole(kind):
    model = made(kind)
    fx_oto.partition(gm := fx_oto.prepare(model, X, unprunable="body.2")).zero_(0.5)
    new = fx_oto.compress(gm, into=model)
    torch.testing.assert_close(new.loss(X), model.loss(X))
    assert new.body[0].out_features == 12


def test_a_pipeline_that_is_run_by_hand_holds_them_as_well():
    @fx_oto.transformation_pass
    def without_dropout(gm):
        found = gm.graph.find_nodes(op="call_module", target="dropout")
        for node in found:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        return gm if found else None

    class Dropped(Projected):
        dropout = nn.Dropout()

        def forward(self, x):
            return self.head(self.dropout(self.body(x)))

    passes = fx_oto.default_pipeline()
    for kind in (*KINDS, Dropped):
        model = made(kind)
        expected = [name for name, _ in fx_oto.prepare(model, X).named_parameters()]
        first = passes.insert_before("dependency-analysis", without_dropout)
        for pipeline in (passes, first, passes.without("mask-insertion")):
            gm = pipeline.run(fx_oto.trace(model, X))
            assert [name for name, _ in gm.named_parameters()] == expected
            assert {id(one) for one in gm.parameters()} == {id(one) for one in model.parameters()}
            assert passes.without("mask-insertion").run(gm) is gm  # nothing is added, or told, twice


def test_a_name_that_graphs_have_themselves():
    model = made(Net)
    model.graph, model.scale = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    with pytest.warns(fx_oto.FxOtoWarning, match=r"'graph' .* model\.parameters\(\)"):
        gm = fx_oto.prepare(model, X)
    assert gm.scale is model.scale
    assert fx_oto.cost(copy.deepcopy(gm), X) == fx_oto.cost(made(Net), X)


def test_a_head_that_is_called_by_the_graphs_name_says_where_it_is():
    torch.manual_seed(0)
    net = Projected()
    gm = fx_oto.prepare(net, torch.randn(4, 6))
    for graph in (gm, copy.deepcopy(gm)):
        with pytest.raises(fx_oto.InputError, match=r"'others.0' is not part of the graph, .* model.others.0\(…\)"):
            graph.get_submodule("others.0")(torch.randn(2, 4))
        with pytest.raises(fx_oto.InputError, match=r"'body.aside.proj' is not part of the graph"):
            graph.body.aside.proj(torch.randn(2, 16))
