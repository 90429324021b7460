"""Recurrent layers and cells: hidden units go, and the compact model returns the same outputs."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.exactness import compress_half, randomise, to_double
from support.releases import after_2_10
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fx_oto
from fx_oto.analysis.tape import FUSED, Tape
from fx_oto.core.differences import relative_error

TOKENS = torch.randn(4, 6, 5)
HIDDEN = 8


def make(kind, inputs, **options):
    if kind == "ReLU":
        return nn.RNN(inputs, HIDDEN, nonlinearity="relu", **options)
    return getattr(nn, kind)(inputs, HIDDEN, **options)


class Tagger(nn.Module):
    """A linear map, a recurrence, and a linear map of every step or of the last."""

    def __init__(self, kind, last, **options):
        super().__init__()
        self.embed, self.recurrence = nn.Linear(5, 6), make(kind, 6, **options)
        width = options.get("proj_size") or HIDDEN
        self.last, self.head = last, nn.Linear(width * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x):
        y = self.recurrence(self.embed(x))[0]
        if self.last:
            y = y[:, -1] if self.recurrence.batch_first else y[-1]
        return self.head(y)


KINDS = ("LSTM", "GRU", "RNN", "ReLU")
FORMS = [
    {"num_layers": layers, "bidirectional": both, "batch_first": first}
    for layers, both, first in itertools.product((1, 2), (False, True), (False, True))
]
NETWORKS = [
    *((kind, form) for kind in KINDS for form in FORMS),
    *((kind, {"bias": False, "num_layers": 2}) for kind in KINDS),
    *(("LSTM", {"proj_size": 3, **form}) for form in FORMS),
    ("LSTM", {"proj_size": 3, "bias": False, "bidirectional": True}),
]


def check_prices(result, inputs):
    """What the partition says is left is what is left, of parameters and of multiply-adds."""
    zigs = fx_oto.partition(result.gm)
    found = fx_oto.cost(result.small, inputs)
    assert (zigs.params.left(zigs.removed()), zigs.macs.left(zigs.removed())) == (found.params, found.macs)


class Summary(nn.Module):
    """What comes after a recurrence in both directions; its module is called by keywords."""

    def __init__(self, summary, width=2 * HIDDEN):
        super().__init__()
        self.embed, self.recurrence = nn.Linear(5, 6), nn.GRU(6, HIDDEN, batch_first=True, bidirectional=True)
        self.norm, self.score = nn.LayerNorm(2 * HIDDEN), nn.Linear(2 * HIDDEN, 1)
        self.summary, self.head = summary, nn.Linear(width, 3)

    def forward(self, x):
        y, h = self.recurrence(input=self.embed(x))
        return self.head(self.summary(self, y, h))


SUMMARIES = {
    "sum of directions": (lambda m, y, h: y.view(y.size(0), y.size(1), 2, HIDDEN).sum(2), HIDDEN),
    "product of directions": (lambda m, y, h: y[..., :HIDDEN] * y[..., HIDDEN:], HIDDEN),
    "ends of directions": (lambda m, y, h: torch.cat([y[:, -1, :HIDDEN], y[:, 0, HIDDEN:]], 1), 2 * HIDDEN),
    "states by layer": (lambda m, y, h: h.view(1, 2, h.size(1), HIDDEN)[-1].sum(0), HIDDEN),
    "states, reshaped": (lambda m, y, h: h.transpose(0, 1).reshape(h.size(1), -1), 2 * HIDDEN),
    "states, unbound": (lambda m, y, h: torch.cat(h.unbind(0), -1), 2 * HIDDEN),
    "maximum over time": (lambda m, y, h: y.max(1)[0], 2 * HIDDEN),
    "norm": (lambda m, y, h: m.norm(y), 2 * HIDDEN),
    "attention": (lambda m, y, h: (m.score(y).softmax(1) * y).sum(1), 2 * HIDDEN),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_what_comes_after_both_directions(name):
    torch.manual_seed(0)
    result = compress_half(Summary(*SUMMARIES[name]), TOKENS)
    assert [len(family) for family in fx_oto.partition(result.gm).families] == [6, HIDDEN]
    check_prices(result, TOKENS.double())


# What is read of the last step differs in how the states of the directions are joined, not in the kind of cell.
EVERY_LAST = [
    *(pytest.param(*network, False, id=f"{network}, every step") for network in NETWORKS),
    *(
        pytest.param(*network, True, id=f"{network}, last step", marks=() if network[0] == "LSTM" else pytest.mark.slow)
        for network in NETWORKS
    ),
]


@pytest.mark.parametrize(("kind", "options", "last"), EVERY_LAST)
def test_hidden_units_go_together_in_all_layers_and_directions(kind, options, last):
    torch.manual_seed(0)
    model = Tagger(kind, last, **options)
    result = compress_half(model, TOKENS, sensitive=not (last and not options.get("batch_first")))
    families = [len(family) for family in fx_oto.partition(result.gm).families]
    assert families == [6, HIDDEN] + [3] * ("proj_size" in options)
    small = result.small.get_submodule("recurrence")
    assert (small.input_size, small.hidden_size) == (3, HIDDEN // 2)
    assert small.proj_size == (2 if "proj_size" in options else 0)
    check_prices(result, TOKENS.double())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_float32_is_exact_too(kind):
    result = compress_half(Tagger(kind, False, batch_first=True, bidirectional=True), TOKENS, torch.float32)
    assert result.zigs == 6 + HIDDEN
    check_prices(result, TOKENS)  # also where torch calls one kernel for the whole layer


class Classifier(nn.Module):
    """Words, a recurrence in both directions, and a map of the two last states."""

    def __init__(self, kind):
        super().__init__()
        self.words = nn.Embedding(20, 10)
        self.recurrence = make(kind, 10, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.head = nn.Linear(2 * HIDDEN, 4)

    def forward(self, x):
        state = self.recurrence(self.words(x))[1]
        state = state[0] if isinstance(self.recurrence, nn.LSTM) else state
        return self.head(torch.cat([state[-2], state[-1]], dim=1))


class Captions(nn.Module):
    """Columns of a feature map are the steps."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.recurrence, self.head = nn.LSTM(6 * 4, HIDDEN, bidirectional=True), nn.Linear(2 * HIDDEN, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.recurrence(x.flatten(1, 2).permute(2, 0, 1))[0]).transpose(0, 1)


class Translator(nn.Module):
    """The last state of one recurrence is the first of another."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.encoder, self.decoder = (nn.LSTM(6, HIDDEN, batch_first=True) for _ in range(2))
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x):
        x = self.embed(x)
        _, state = self.encoder(x)
        y, _ = self.decoder(x.flip(1), state)
        return self.head(y)


class Shared(nn.Module):
    """Two recurrences over one input, added; the second of them is stacked on a third that is used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(HIDDEN, 3)
        self.a, self.b = nn.LSTM(6, HIDDEN, batch_first=True), nn.GRU(6, HIDDEN, batch_first=True)
        self.c = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.c(self.c(self.a(x)[0] + self.b(x)[0])[0])[0])


class Given(nn.Module):
    """Initial states of the user's."""

    def __init__(self, begin):
        super().__init__()
        self.recurrence, self.head = nn.GRU(5, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 3)
        self.learnt, self.first, self.begin = nn.Parameter(torch.randn(1, 1, HIDDEN)), nn.Linear(5, HIDDEN), begin

    def forward(self, x):
        return self.head(self.recurrence(x, self.begin(self, x))[0])


STATES = {
    "zeros": lambda model, x: x.new_zeros(1, x.size(0), HIDDEN),
    "zeros of old code": lambda model, x: next(model.parameters()).data.new(1, x.size(0), HIDDEN).zero_(),
    "zeros of older code": lambda model, x: torch.FloatTensor(1, x.size(0), HIDDEN).zero_().to(x),
    "zeros of torch's": lambda model, x: torch.zeros(1, x.size(0), HIDDEN, dtype=x.dtype),
    "learnt": lambda model, x: model.learnt.expand(1, x.size(0), HIDDEN),
    "computed": lambda model, x: model.first(x.mean(1)).tanh().unsqueeze(0),
}


class Residual(nn.Module):
    """A recurrence in a residual branch, with dropout between its layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, HIDDEN), nn.Linear(HIDDEN, 3)
        self.recurrence = nn.GRU(HIDDEN, HIDDEN, num_layers=3, dropout=0.5, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        return self.head(torch.relu(x + self.recurrence(x)[0]))


class Unbatched(nn.Module):
    """One sequence at a time."""

    def __init__(self):
        super().__init__()
        self.recurrence, self.head = nn.LSTM(5, HIDDEN, bidirectional=True), nn.Linear(2 * HIDDEN, 3)

    def forward(self, x):
        return self.head(self.recurrence(x)[0])


class Loop(nn.Module):
    """A cell in a Python loop, with its own zeros or the user's."""

    def __init__(self, kind, given=False, **options):
        super().__init__()
        self.embed, self.cell, self.given = nn.Linear(5, 6), getattr(nn, kind)(6, HIDDEN, **options), given
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x):
        x, state = self.embed(x), None
        pair = isinstance(self.cell, nn.LSTMCell)
        if self.given:
            zero = x.new_zeros(x.size(0), HIDDEN)
            state = (zero, zero.clone()) if pair else zero
        for step in range(4):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if pair else state)


CELLS = {
    **{f"{kind}, {given}": (kind, given) for kind in ("LSTMCell", "GRUCell", "RNNCell") for given in (False, True)},
}
OTHERS = {
    **{f"words, {kind}": (lambda kind=kind: Classifier(kind), torch.randint(0, 20, (4, 6))) for kind in KINDS},
    "captions": (Captions, torch.randn(2, 1, 4, 7)),
    "translator": (Translator, TOKENS),
    "shared": (Shared, TOKENS),
    "residual": (Residual, TOKENS),
    "unbatched": (Unbatched, torch.randn(6, 5)),
    **{f"state {name}": (lambda begin=begin: Given(begin), TOKENS) for name, begin in STATES.items()},
    **{name: (lambda chosen=chosen: Loop(*chosen), TOKENS) for name, chosen in CELLS.items()},
    "cell without biases": (lambda: Loop("LSTMCell", bias=False), TOKENS),
    "cell with relu": (lambda: Loop("RNNCell", nonlinearity="relu"), TOKENS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_recurrences_among_other_layers(name):
    torch.manual_seed(0)
    model, inputs = OTHERS[name]
    result = compress_half(model(), inputs)
    frozen = {axis.tensor: str(axis.reason) for axis in fx_oto.partition(result.gm).frozen if axis.dim == 0}
    assert not {name for name in frozen if not name.startswith(("head", "words"))}, frozen
    check_prices(result, inputs.double() if inputs.is_floating_point() else inputs)


NOT_EXPORTED = {"words, LSTM": after_2_10("cannot export it")}


@pytest.mark.filterwarnings("ignore:The tensor attributes? self:UserWarning")  # torch's, of a list of parameters
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=NOT_EXPORTED.get(name, pytest.mark.slow if i % 2 else ()))
        for i, name in enumerate(OTHERS)
    ],
)
def test_exported_graphs_lose_the_same_units(name):
    torch.manual_seed(0)
    make_model, inputs = OTHERS[name]
    model, inputs = randomise(make_model().double()).eval(), to_double(inputs)
    many = None if name == "unbatched" else ({0: torch.export.Dim.AUTO},)
    traced = fx_oto.partition(fx_oto.prepare(model, inputs))
    gm = fx_oto.prepare(torch.export.export(model, (inputs,), dynamic_shapes=many, strict=False).module(), inputs)
    zigs = fx_oto.partition(gm)
    assert sorted(map(len, zigs.families)) == sorted(map(len, traced.families))
    for i, family in enumerate(zigs.families):
        fx_oto.partition(gm).mask_(i, torch.arange(len(family) // 2))
    masked = gm(inputs)
    for i, family in enumerate(zigs.families):
        zigs.zero_zigs_(i, torch.arange(len(family) // 2))
    small = fx_oto.compress(gm)
    batches = [inputs] if many is None else [inputs, inputs.flip(0)[:2]]
    assert max(relative_error(model(x), small(x)) for x in batches) <= 1e-10
    assert relative_error(masked, small(inputs)) <= 1e-10  # here masks reach the parameters, and act alone


@pytest.mark.parametrize("kind", ["GRUCell", "RNNCell"])
def test_masks_of_cells_with_one_state_act_alone(kind):
    gm = fx_oto.prepare(randomise(Loop(kind).double()), TOKENS.double())
    zigs, before = fx_oto.partition(gm), gm(TOKENS.double())
    for i, family in enumerate(zigs.families):
        fx_oto.partition(gm).mask_(i, torch.arange(len(family) // 2))
    masked = gm(TOKENS.double())
    for i, family in enumerate(zigs.families):
        zigs.zero_zigs_(i, torch.arange(len(family) // 2))
    assert relative_error(gm(TOKENS.double()), masked) <= 1e-10 < relative_error(before, masked)


WHOLE = {
    "computed, not zero": lambda model, x: model.first(x.mean(1)).sigmoid().unsqueeze(0),
    "ones": lambda model, x: x.new_ones(1, x.size(0), HIDDEN),
    "the input": lambda model, x: x.sum(dim=(1, 2)).view(1, -1, 1).expand(1, x.size(0), HIDDEN).relu(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_units_with_an_initial_state_that_is_not_zero_are_kept(name):
    zigs = fx_oto.partition(fx_oto.prepare(Given(WHOLE[name]), TOKENS))
    assert zigs.num_zigs == 0
    reasons = {axis.tensor: str(axis.reason) for axis in zigs.frozen}
    assert "initial state" in reasons["recurrence.weight_hh_l0"]
    assert "test_recurrent.py" in reasons["recurrence.weight_hh_l0"]


def test_a_state_that_the_caller_gives_keeps_the_units_and_no_more():
    class Continued(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.recurrence, self.head = nn.Linear(5, 6), nn.LSTM(6, HIDDEN), nn.Linear(HIDDEN, 3)

        def forward(self, x, h, c):
            y, (h, c) = self.recurrence(self.embed(x), (h, c))
            return self.head(y), h, c

    states = torch.randn(2, 1, 6, HIDDEN)
    gm = fx_oto.prepare(Continued(), (TOKENS, states[0], states[1]))
    assert [family.name for family in fx_oto.partition(gm).families] == ["embed.weight"]


def test_features_that_are_not_zero_once_removed_go_with_the_weights_that_read_them():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.recurrence, self.head = nn.Linear(5, 6), nn.GRU(6, HIDDEN), nn.Linear(HIDDEN, 3)

        def forward(self, x):
            return self.head(self.recurrence(self.embed(x).sigmoid())[0])

    found = compress_half(Gated(), TOKENS)
    first, second = fx_oto.partition(found.gm).families
    assert [(slot.tensor, slot.dim) for slot in first.variables] == [
        ("embed.weight", 0),
        ("embed.bias", 0),
        ("recurrence.weight_ih_l0", 1),
    ]
    assert second.name == "recurrence.weight_ih_l0"


def test_a_single_unit_stays():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrence, self.head = nn.LSTM(5, 1, bidirectional=True), nn.Linear(2, 3)

        def forward(self, x):
            return self.head(self.recurrence(x)[0])

    assert fx_oto.partition(fx_oto.prepare(One(), TOKENS)).num_zigs == 0


@pytest.mark.filterwarnings("ignore:The tensor attributes? self:UserWarning")
@pytest.mark.parametrize("exported", [False, True], ids=["traced", "exported"])
def test_as_many_units_as_projections_are_never_left(exported):
    """Torch takes a state of the same width as its memory for one without projections."""
    model, inputs = randomise(Tagger("LSTM", False, proj_size=3).double()), TOKENS.double()
    given = torch.export.export(model, (inputs,), strict=False).module() if exported else model
    gm = fx_oto.prepare(given, inputs)
    zigs = fx_oto.partition(gm)
    hidden = [len(family) for family in zigs.families].index(HIDDEN)
    zigs.zero_zigs_(hidden, torch.arange(HIDDEN - 3))
    small = fx_oto.compress(gm)
    assert "would become equal: one more unit is kept" in fx_oto.report(small).records[3].refusals[0]
    assert relative_error(model(inputs), small(inputs)) <= 1e-10
    assert small.get_parameter("recurrence.weight_hr_l0").shape == (3, 4)


def test_the_analysis_does_not_grow_with_the_sequence():
    def calls(length):
        gm = fx_oto.trace(Tagger("GRU", False, num_layers=2), torch.randn(length, 2, 5))
        return sum(len(step[1]) for step in fx_oto.Context.of(gm).get(Tape).steps)

    assert calls(4) == calls(40)


def test_the_compact_module_lists_its_own_parameters():
    result = compress_half(Tagger("LSTM", False, num_layers=2, bidirectional=True), TOKENS)
    small, full = (gm.get_submodule("recurrence") for gm in (result.small, result.gm))
    assert full.hidden_size == HIDDEN
    assert all(left is right for left, right in zip(small._flat_weights, small.parameters(), strict=True))


@pytest.mark.parametrize("form", [{}, {"proj_size": 3}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_one_kernel_costs_what_its_steps_do(form):
    model, inputs = nn.LSTM(5, HIDDEN, **form).double(), TOKENS.double()
    shown, layers = form.get("proj_size", 0), form.get("num_layers", 1) * (2 if "bidirectional" in form else 1)
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    with FakeTensorMode(), counter:
        weights = [torch.empty(weight.shape, device="cuda") for weight in model.parameters()]
        state, memory = (torch.empty(layers, 6, width, device="cuda") for width in (shown or HIDDEN, HIDDEN))
        source, each = torch.empty(TOKENS.shape, device="cuda"), len(weights) // layers
        settings = (2, HIDDEN, shown, form.get("num_layers", 1), False, 0.0, False, "bidirectional" in form, [], None)
        torch.ops.aten._cudnn_rnn(source, weights, each, None, state, memory, *settings)
    assert counter.get_total_flops() // 2 == fx_oto.cost(model, inputs).macs


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_training_to_a_target(kind):
    torch.manual_seed(0)
    model = Tagger(kind, True, batch_first=True, num_layers=2, dropout=0.1)
    gm = fx_oto.prepare(model, TOKENS)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, momentum=0.9, target_group_sparsity=0.5, total_steps=40)
    gm.train()
    for _ in range(40):
        optimizer.zero_grad()
        x = torch.randn(16, 6, 5)
        (gm(x) - x[:, 0, :3]).square().mean().backward()
        optimizer.step()
    assert optimizer.reached()["group sparsity"] == fx_oto.partition(gm).group_sparsity() == 0.5
    small, x = fx_oto.compress(gm).eval(), torch.randn(5, 9, 5)
    assert relative_error(model.eval()(x), small(x)) <= 1e-5
    assert small.get_submodule("recurrence").hidden_size < HIDDEN


class Unread(nn.Module):
    """A layer that is called, and whose several results nobody uses."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(5, 6), layer, nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.embed(x))
        self.layer(*(x,) * (3 if isinstance(self.layer, nn.MultiheadAttention) else 1))
        return self.head(x)


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(6, 2), *(make(kind, 6) for kind in KINDS)], ids=str)
def test_a_layer_that_nobody_reads_loses_what_it_reads(layer):
    compress_half(Unread(layer), TOKENS)
