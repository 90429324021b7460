"""Recurrence over packed sequences: as long as the numbers in an input say, and cut like any other."""

import pytest
import torch
from support.exactness import randomise
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fx_oto

LENGTHS = torch.tensor([9, 7, 4])
BATCHES = ([9, 7, 4], [6, 6], [5], [12, 9, 9, 2, 1])


class Tagger(nn.Module):
    """Embeds, packs, runs one recurrent layer or two, and reads each step, or what is left in the end."""

    def __init__(self, kind="LSTM", batch_first=True, read="steps", between=None, start=False, ordered=True, **options):
        super().__init__()
        self.batch_first, self.read, self.between, self.ordered = batch_first, read, between, ordered
        self.embed = nn.Linear(6, 10)
        self.first = getattr(nn, kind)(10, 16, batch_first=batch_first, **options)
        out = (options.get("proj_size") or 16) * (2 if options.get("bidirectional") else 1)
        self.second = getattr(nn, kind)(out, 12, batch_first=batch_first) if between else None
        self.head = nn.Linear(12 if between else out, 3)
        self.start = nn.Linear(6, 16) if start else None

    def forward(self, x, lengths):
        x = x if self.batch_first else x.transpose(0, 1)
        packed = pack_padded_sequence(self.embed(x), lengths, self.batch_first, enforce_sorted=self.ordered)
        start = None
        if self.start is not None:
            start = self.start(x.mean(1 if self.batch_first else 0))[None] * 0
        packed, last = self.first(packed) if start is None else self.first(packed, start)
        if self.second is not None:
            if self.between == "tanh":
                packed = PackedSequence(packed.data.tanh(), *packed[1:])
            packed, last = self.second(packed)
        if self.read == "last":
            last = last[0] if isinstance(last, tuple) else last
            return self.head(torch.cat([last[-2], last[-1]], -1) if self.first.bidirectional else last[-1])
        padding = 1.5 if self.read == "padded" else 0.0
        total = x.size(1 if self.batch_first else 0) if self.read == "total" else None
        steps, found = pad_packed_sequence(packed, self.batch_first, padding_value=padding, total_length=total)
        steps = self.head(steps)
        return (steps if self.batch_first else steps.transpose(0, 1)), found


KINDS = {
    "lstm": {},
    "gru": {"kind": "GRU"},
    "rnn": {"kind": "RNN"},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 8},
    "steps first": {"batch_first": False},
    "in any order": {"ordered": False},
    "two in a row": {"between": "packed"},
    "a function between": {"between": "tanh"},
    "last state": {"read": "last"},
    "last state both ways": {"read": "last", "bidirectional": True, "kind": "GRU"},
    "padded with a number": {"read": "padded"},
    "as long as the input": {"read": "total"},
    "initial state": {"kind": "GRU", "start": True},
    "without biases": {"bias": False},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_exact_at_any_lengths(kind, training):
    torch.manual_seed(0)
    model = randomise(Tagger(**KINDS[kind]).double())
    lengths = LENGTHS if KINDS[kind].get("ordered", True) else LENGTHS.roll(1)
    gm = fx_oto.prepare(model, (torch.randn(3, 9, 6, dtype=torch.float64), lengths))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm).train(training)
    model.train(training)
    for batch in BATCHES:
        lengths = torch.tensor(batch)
        lengths = lengths if KINDS[kind].get("ordered", True) else lengths.roll(1)
        x = torch.randn(len(batch), max(batch), 6, dtype=torch.float64)
        torch.testing.assert_close(small(x, lengths), model(x, lengths), rtol=1e-9, atol=1e-10)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert left < (0.85 if kind == "padded with a number" else 0.45)
    assert fx_oto.Context.of(gm).capture.opaque == ()


def test_multiply_adds_are_those_of_the_steps_that_there_are():
    model = Tagger()
    x = torch.randn(3, 9, 6)
    gm = fx_oto.prepare(model, (x, LENGTHS))
    gates = int(LENGTHS.sum()) * 4 * 16 * (10 + 16)
    rest = x[..., 0].numel() * (6 * 10 + 16 * 3)
    assert fx_oto.partition(gm).macs.total == gates + rest


def test_the_compact_model_is_written_back_saved_and_pruned_again(tmp_path):
    torch.manual_seed(0)
    model, x = randomise(Tagger(num_layers=2, bidirectional=True)), torch.randn(3, 9, 6)
    gm = fx_oto.prepare(model, (x, LENGTHS))
    fx_oto.partition(gm).zero_(0.5)
    small, given = fx_oto.compress(gm).eval(), (torch.randn(2, 6, 6), torch.tensor([6, 2]))
    steps, _ = small(*given)
    back = fx_oto.compress(gm, into=model).eval()
    assert type(back) is Tagger
    assert back.first.hidden_size == 8
    torch.testing.assert_close(back(*given)[0], steps, rtol=1e-5, atol=1e-6)
    fx_oto.save(small, tmp_path / "small.safetensors")
    assert torch.equal(fx_oto.load(tmp_path / "small.safetensors").eval()(*given)[0], steps)
    again = fx_oto.prepare(small, (x, LENGTHS))
    fx_oto.partition(again).zero_(0.5)
    less = fx_oto.compress(again).eval()
    torch.testing.assert_close(less(*given)[0], small(*given)[0], rtol=1e-5, atol=1e-6)
    assert less.get_submodule("first").hidden_size == 4


class Turned(nn.LSTM):
    """Turns the channels around that it is given: not what torch's own layer does."""

    def forward(self, packed, hx=None):
        return super().forward(PackedSequence(packed.data.flip(-1), *packed[1:]), hx)


def test_code_of_a_users_own_around_a_recurrent_layer_is_not_overlooked():
    torch.manual_seed(0)
    model = Tagger()
    model.first, model.embed = Turned(10, 16, batch_first=True), nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 10))
    model, x = randomise(model.double().eval()), torch.randn(3, 9, 6, dtype=torch.float64)
    with fx_oto.temporary_rules():
        fx_oto.register_leaf(Turned, fx_oto.kinds.keep_whole("its channels are turned around"))
        gm = fx_oto.prepare(model, (x, LENGTHS))
        assert fx_oto.partition(gm).num_zigs == 12
        assert fx_oto.Context.of(gm).capture.opaque == ("first",)
        fx_oto.partition(gm).zero_(0.5)
        small = fx_oto.compress(gm).eval()
    torch.testing.assert_close(small(x, LENGTHS)[0], model(x, LENGTHS)[0])
