"""Recurrent layers and cells: hidden units go, and the compact model returns the same outputs."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.exactness import compress_half, randomise
from torch import nn

import fx_oto

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


@pytest.mark.parametrize("last", [False, True], ids=["every step", "last step"])
@pytest.mark.parametrize(("kind", "options"), NETWORKS, ids=str)
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
    "zeros of torch's": lambda model, x: torch.zeros(1, x.size(0), HIDDEN, dtype=x.dtype),
    "learnt": lambda model, x: model.learnt.expand(1, x.size(0), HIDDEN),
    "computed": lambda model, x: model.first(x.mean(1)).tanh().unsqueeze(0),
}


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
