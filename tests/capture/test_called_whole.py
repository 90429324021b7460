"""What a run cannot take is called as a whole: as small a piece as possible, however its code is written."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from support.kinds import holds
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fx_oto


class Experts(nn.Module):
    """A mixture of experts, idle for a single token; its first argument is called by any name."""

    def __init__(self, width, hidden, count):
        super().__init__()
        self.route = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(count)
        )

    def mix(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, chosen = self.route(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token) > 1:
                out = out.index_add(0, token, expert(x[token]) * weights[token, place, None])
        return out.view(shape)


class CalledSelf(Experts):
    def forward(self, x):
        return self.mix(x)


class CalledS(Experts):
    def forward(s, x):
        return s.mix(x)


class CalledThis(Experts):
    def forward(this, x, /):
        return Experts.mix(this, x)


class CalledStar(Experts):
    def forward(*args):
        return args[0].mix(args[1])


class Rebound(Experts):
    def forward(self, x):
        me = self
        del self
        return me.mix(x)


class Decorated(Experts):
    @torch.no_grad()
    def look(self, x):
        return x

    def forward(self, x):
        return self.mix(self.look(x) * 0 + x)


KINDS = {kind.__name__: kind for kind in (CalledSelf, CalledS, CalledThis, CalledStar, Rebound, Decorated)}


class Net(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.e, self.m, self.o, self.h = nn.Linear(6, 32), part, nn.Linear(16, 3), nn.Linear(32, 16)

    def forward(self, x):
        x = self.e(x)
        return self.o(F.relu(self.h(x + self.m(x))))


class NetByS(Net):
    def forward(s, x):
        x = s.e(x)
        return s.o(F.relu(s.h(x + s.m(x))))


EXAMPLE, OTHERS = torch.randn(2, 5, 6), [torch.randn(3, 5, 6), torch.randn(2, 9, 6)]


@pytest.mark.filterwarnings("ignore:.*:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("net", [Net, NetByS])
@pytest.mark.parametrize("kind", KINDS)
def test_the_opaque_part_is_found_whatever_its_first_argument_is_called(kind, net):
    found = holds(net(KINDS[kind](32, 64, 4)), EXAMPLE, OTHERS)
    capture = fx_oto.Context.of(found.gm).capture
    assert capture.front_end == "fx_oto"
    assert capture.opaque
    assert capture.opaque == ("m",) or all(name.startswith("m.") for name in capture.opaque)
    assert found.zigs >= 16
    assert "h.weight" in {family.name for family in fx_oto.partition(found.gm).families}


@pytest.mark.filterwarnings("ignore:.*:fx_oto.FxOtoWarning")
def test_one_of_two_such_parts_does_not_hide_the_other():
    model = nn.Sequential(Net(CalledS(32, 24, 3)), nn.Linear(3, 6), Net(CalledThis(32, 24, 3)))
    found = holds(model, EXAMPLE, OTHERS)
    opaque = fx_oto.Context.of(found.gm).capture.opaque
    assert {name.split(".m")[0] for name in opaque} == {"0", "2"}
    assert found.zigs >= 16 + 3 + 16


class TopLevel(nn.Module):
    """The question is in the model's own forward, between parts that can be captured."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(s, x):
        x = s.b(F.relu(s.a(x)))
        if x.mean() > 0:
            x = x * 2
        return s.d(F.relu(s.c(x)))


class ByItem(TopLevel):
    def forward(s, x):
        x = s.b(F.relu(s.a(x)))
        x = x * float(x.abs().max().item())
        return s.d(F.relu(s.c(x)))


class BySelection(TopLevel):
    def forward(s, x):
        x = s.b(F.relu(s.a(x)))
        x = torch.stack([row[row[:, 0] > row[:, 1].mean()].sum(0) for row in x])
        return s.d(F.relu(s.c(x)))


class ByNumpy(TopLevel):
    def forward(s, x):
        x = s.b(F.relu(s.a(x)))
        order = torch.from_numpy(x.detach().numpy().mean((0, 1)).argsort())
        return s.d(F.relu(s.c(x[..., order])))


@pytest.mark.filterwarnings("ignore:.*:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("kind", [TopLevel, ByItem, BySelection, ByNumpy])
def test_what_comes_before_and_after_is_captured(kind):
    found = holds(kind(), EXAMPLE, OTHERS)
    assert {family.name for family in fx_oto.partition(found.gm).families} >= {"a.weight", "c.weight"}


class Detector(nn.Module):
    """Selects by values, and then writes into what was selected."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def select(self, rows):
        return [{"boxes": row[row[:, 0] > 0], "count": row[:, 1]} for row in rows]

    def forward(self, x):
        found = self.select(self.b(F.relu(self.a(x))))
        for number, one in enumerate(found):
            found[number]["boxes"] = one["boxes"] * 2
        return found


def test_what_it_returns_may_be_written_into():
    model, x = Detector().eval(), torch.randn(2, 5, 6)
    gm = fx_oto.prepare(model, x)
    expected, found = model(x), gm(x)
    for mine, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, mine)
    assert fx_oto.partition(gm).num_zigs == 16


class InLoop(TopLevel):
    """A statement of several lines, in a loop, with names of its own, and one that returns."""

    def forward(self, x, times=2):
        x = self.b(F.relu(self.a(x)))
        for _ in range(times):
            x, top = (
                x[..., x.detach().numpy().mean((0, 1)).argsort().tolist()],
                sum([float(row.max()) for row in x.detach()]),
            )
        x = self.d(F.relu(self.c(x)))
        if times < 2:
            return x
        return x * (2 if x.sum() > 0 else 3) + 0 * top


@pytest.mark.filterwarnings("ignore:.*:fx_oto.FxOtoWarning")
def test_statements_of_any_form():
    found = holds(InLoop(), EXAMPLE, OTHERS)
    assert len(fx_oto.Context.of(found.gm).capture.opaque) == 2
    assert {family.name for family in fx_oto.partition(found.gm).families} >= {"a.weight"}


class Asking(nn.Module):
    """Asks what is in tensors that depend on sizes and types alone."""

    def __init__(self, question):
        super().__init__()
        self.a, self.b, self.question = nn.Linear(6, 16), nn.Linear(16, 4), question
        self.register_buffer("table", torch.arange(12))

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.b(h * 2 if self.question(x, self) else h)


QUESTIONS = {
    "a causal mask, moved": lambda x, m: (torch.ones(x.size(1), x.size(1)).triu(1).to(x) == 0).tril().any(),
    "of the type of another": lambda x, m: torch.zeros(3).type_as(x).sum() == 0,
    "ones like the input": lambda x, m: torch.ones_like(x).all(),
    "new_full": lambda x, m: x.new_full((2, x.size(1)), 3.0).max() > 2,
    "a buffer": lambda x, m: (m.table[: x.size(1)] >= 0).all().item(),
    "numpy": lambda x, m: m.table.numpy().sum() > 0,
    "equal": lambda x, m: torch.equal(torch.zeros(x.size(1)), torch.zeros_like(x[0, :, 0]).to(torch.float32)),
    "not": lambda x, m: not torch.zeros(1, x.size(1)).any(),
}


@pytest.mark.filterwarnings("ignore:.*:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_depends_on_no_input_is_known(name):
    found = holds(Asking(QUESTIONS[name]), EXAMPLE, OTHERS, any_size=False)
    assert not fx_oto.Context.of(found.gm).capture.opaque
    assert found.zigs == 16


@pytest.mark.parametrize("causal", [None, True])
def test_torchs_encoder_with_a_causal_mask_is_looked_into(causal):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
            self.embed, self.layers, self.head = nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.size(1)).to(x)
            return self.head(self.layers(self.embed(x), mask=mask, is_causal=causal)[:, -1])

    found = holds(Encoder(), EXAMPLE, OTHERS)
    assert not fx_oto.Context.of(found.gm).capture.opaque
    assert found.zigs >= 2 * (4 + 32)


class Sentences(nn.Module):
    """Words of several lengths, packed for the recurrence."""

    def __init__(self, code):
        super().__init__()
        self.words, self.recurrence, self.code = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True), code
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, words, lengths):
        return self.b(torch.relu(self.a(self.code(self, self.words(words), lengths))))


def _all_steps(model, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(model.recurrence(packed)[0], batch_first=True)[0]


def _last_step(model, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    _, (state, _) = model.recurrence(packed)
    return state[-1]


def _sentences(lengths):
    return torch.randint(0, 20, (len(lengths), max(lengths))), torch.tensor(lengths)


PACKING = pytest.mark.filterwarnings("ignore:no rule is known for the op scatter_:fx_oto.FxOtoWarning")  # torch's own


@PACKING
@pytest.mark.parametrize("code", [_all_steps, _last_step])
def test_a_recurrence_on_packed_sequences(code):
    others = [_sentences(lengths) for lengths in ([1, 5, 3, 3], [4, 7], [2, 2])]
    found = compress_half(Sentences(code), _sentences([5, 3, 2]), others=others, any_size=True, sizes=1)
    assert found.zigs == 8 + 6 + 7
    assert fx_oto.Context.of(found.gm).capture.opaque == ()


def _packed_beside_a_loop(model, x, lengths):
    """As what is packed is computed in the same statement, only the function can be called as a whole."""
    packed = pack_padded_sequence(x * model.scale, lengths, batch_first=True, enforce_sorted=False)
    _, (state, _) = model.recurrence(packed)
    total = sum(torch.tanh(x[:, step, :6]) for step in range(x.size(1)))
    return state[-1] + total


@PACKING
def test_functions_are_called_as_a_whole_also_where_sizes_are_fixed():
    model = Sentences(_packed_beside_a_loop)
    model.scale = nn.Parameter(torch.rand(8))
    found = compress_half(model, _sentences([5, 3, 2]), others=[_sentences([1, 5, 3, 3])], sizes=1)
    assert found.zigs == 8 + 7
    (length,) = (size for size in fx_oto.Context.of(found.gm).capture.sizes if ("words", 1) in size.dims)
    assert length.fixed


@torch.library.custom_op("capture::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_autograd(lambda ctx, gradient: gradient * 2)


def test_an_op_that_says_nothing_of_its_result():
    """It has no fake kernel, so it is called as a whole."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(twice(self.a(x)))))

    assert compress_half(Net(), torch.randn(3, 4)).zigs == 6


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_only_what_asks_for_numbers_is_called_as_a_whole():
    """Functions of the user's that run without numbers are looked into, whatever another one asks."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.second(Rounded.apply(3 * self.first(x))))
            h = 1.5 * h if self.training else h
            return self.last(h)[torch.unique(x[:, 0] > 0, return_inverse=True)[1].sort().indices]

    found = compress_half(Net(), torch.randn(5, 4))
    assert found.zigs == 24


def padding_mask(lengths):
    """As speech networks have it."""
    longest = int(lengths.max())
    return torch.arange(longest, device=lengths.device)[None] >= lengths[:, None]


def mean_of_steps(h, lengths):
    return h.masked_fill(padding_mask(lengths)[..., None], 0.0).sum(1) / lengths[:, None]


class Speech(nn.Module):
    """Makes a mask of as many steps as the longest example has, in a function of its module."""

    def __init__(self, code):
        super().__init__()
        self.first, self.recurrence = nn.Linear(6, 16), nn.LSTM(16, 12, batch_first=True)
        self.attention, self.last, self.code = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 3), code

    def forward(self, x, lengths):
        lengths = lengths.clamp(min=1)
        packed = pack_padded_sequence(torch.relu(self.first(x)), lengths, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.recurrence(packed)[0], batch_first=True)
        return self.last(torch.tanh(self.code(self, h, lengths)))


SPEECH = {
    "a mean": lambda m, h, lengths: mean_of_steps(h, lengths),
    "a masked attention": lambda m, h, lengths: m.attention(h, h, h, key_padding_mask=padding_mask(lengths))[0].mean(1),
}


@PACKING
@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("again", [False, True])
def test_a_function_that_asks_for_lengths(name, again):
    """Twice, for what a graph has marked must not be taken for the function itself."""
    inputs = torch.randn(3, 5, 6), torch.tensor([5, 3, 2])
    others = [(torch.randn(4, 7, 6), torch.tensor([7, 1, 4, 6])), (torch.randn(1, 3, 6), torch.tensor([3]))]
    found = compress_half(Speech(SPEECH[name]), inputs, others=others, sizes=1)
    assert found.params_left < 0.65


NUMBERS_IN_TENSORS = {
    "a scale": lambda h, x: h / x.abs().max().item(),
    "a scale of what is cut": lambda h, x: h * h.sum().item(),
    "a negative one": lambda h, x: h + x.min().item(),
    "a bound": lambda h, x: h.clamp(max=h.mean().item()),
    "arithmetic": lambda h, x: h / (h.std().item() * 2 + 1e-5),
    "rounded": lambda h, x: h * round(x.abs().max().item()),
    "a length": lambda h, x: h + torch.zeros((x > 0).sum().item(), 16).sum(0),
    "a slice": lambda h, x: h[: (x[:, 0] < 9).sum().item()],
    "int": lambda h, x: h * int((x > 0).sum().item()),
    "of a function": lambda h, x: h * len(range(positive(x))),
    "math": lambda h, x: h * math.sqrt((x > 0).sum().item()),
    "filled": lambda h, x: h + torch.full((1, 16), x.mean().item()),
}


class Reading(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.first, self.last, self.code = nn.Linear(6, 16), nn.Linear(16, 3), code

    def forward(self, x):
        return self.last(self.code(torch.relu(self.first(x)), x))


@pytest.mark.parametrize("name", NUMBERS_IN_TENSORS)
def test_a_number_that_is_read_from_a_tensor(name):
    assert compress_half(Reading(NUMBERS_IN_TENSORS[name]), torch.randn(4, 6)).zigs == 16


def positive(x):
    return int((x > 0).sum())


class Judge(nn.Module):
    def forward(self, x):
        return int((x > 0).sum())


@pytest.mark.filterwarnings("ignore:the graph takes batches:fx_oto.FxOtoWarning")
def test_what_code_decides_by_a_number_of_an_opaque_module_is_checked():
    class Net(Reading):
        def __init__(self):
            super().__init__(lambda h, x: h)
            self.judge = Judge()

        def forward(self, x):
            h = torch.relu(self.first(x))
            return self.last(2 * h if self.judge(x) > 3 else h)

    x = torch.ones(4, 6)
    gm = fx_oto.prepare(Net(), x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    with pytest.raises(AssertionError, match="the graph was captured where"):
        small(-x)


def chooses(told):
    """A function that says whether numbers are large."""

    def choose(x):
        return told(bool((x > 0).all()), x)

    return choose


CHOICES = {
    "a bool": (chooses(lambda large, x: large), lambda found: found),
    "one of two": (chooses(lambda large, x: (large, x * 1)), lambda found: found[0]),
    "text": (chooses(lambda large, x: ("large" if large else "small", x)), lambda found: found[0] == "large"),
    "nothing": (chooses(lambda large, x: (None if large else x * 2, x)), lambda found: found[0] is None),
    "nothing at all": (chooses(lambda large, x: None if large else x * 2), lambda found: found is None),
    "an array": (chooses(lambda large, x: (np.array([1 + large]), x * 1)), lambda found: found[0][0] > 1),
    "an array in a dictionary": (chooses(lambda large, x: {"k": np.array(large)}), lambda found: bool(found["k"])),
    "numpy's number": (chooses(lambda large, x: np.int64(large)), lambda found: found > 0),
    "a set": (chooses(lambda large, x: {int(large)}), lambda found: 1 in found),
}


class Choosing(nn.Module):
    def __init__(self, name, as_module):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.told, self.is_large = CHOICES[name]
        self.inner = Told(self.told) if as_module else None

    def forward(self, x):
        h = torch.relu(self.first(x))
        found = self.told(x) if self.inner is None else self.inner(x)
        return self.last(h if self.is_large(found) else -h)


class Told(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, x):
        return self.code(x)


def _refusal(model, x):
    try:
        fx_oto.prepare(model, x)
    except fx_oto.TraceError as error:
        return str(error)
    return None


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("name", CHOICES)
def test_what_a_call_chooses_by_numbers_is_not_taken_for_a_constant(name, as_module):
    torch.manual_seed(0)
    model, x = Choosing(name, as_module), torch.ones(4, 6)
    if (text := _refusal(model, x)) is not None:
        assert "control flow depends on the values in a tensor" in text
        return
    gm = fx_oto.prepare(model, x)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        gm(-x)


def test_a_statement_that_goes_by_what_a_function_found_is_called_as_a_whole():
    has_negative = chooses(lambda large, x: not large)

    class Net(Reading):
        def forward(self, x):
            h = torch.relu(self.first(x))
            if has_negative(x):
                x = x.masked_fill(x < 0, 0)
            return self.last(h * x.sum(1, keepdim=True))

    assert compress_half(Net(None), torch.randn(4, 6), others=[torch.rand(3, 6)]).zigs == 16


class Routed(nn.Module):
    """Only those that some example is sent to are called, in a loop over numbers."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        chosen, total = self.gate(x).argmax(-1), torch.zeros_like(x)
        hit = chosen.unique()
        for number in hit:
            expert = self.experts[number]
            total = total + expert(x) * (chosen == number)[:, None]
        return total


def test_a_module_that_is_chosen_by_numbers_is_not_written_down():
    net = nn.Sequential(nn.Linear(6, 6), Routed(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(2, 6, dtype=torch.float64)
    gm = fx_oto.prepare(net, x)
    assert fx_oto.Context.of(gm).capture.opaque == ("1",)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for seed in range(8):
        x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(small(x), net(x))


LEAKS = {
    "range": lambda h, x: sum(h * (i + 1) for i in range((x > 0).sum().item())),
    "a list": lambda h, x: h * [*range(99)][(x > 0).sum().item()],
    "text": lambda h, x: h * len(str((x > 0).sum().item() * 100)),
    "a decision": lambda h, x: h * 2 if (x > 0).sum().item() == 12 else h,
    "a key": lambda h, x: h * {i: i for i in range(99)}[(x > 0).sum().item()],
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_number_that_code_in_c_was_given_is_refused(name):
    with pytest.raises(fx_oto.TraceError, match=r"test_called_whole\.py:\d+.*(depends on the values|out of range)"):
        fx_oto.prepare(Reading(LEAKS[name]), torch.randn(4, 6))


class Block(nn.Module):
    """Asks for the longest example in its own code, between its layers."""

    def __init__(self, own=False):
        super().__init__()
        self.first, self.second, self.own = nn.Linear(6, 12), nn.Linear(12, 6), own

    def forward(self, x, lengths):
        longest = max(int(lengths.max() + (0 * self.first.bias.sum()).long() if self.own else lengths.max()), 2)
        mask = torch.arange(longest) < lengths[:, None]
        return x + self.second(torch.relu(self.first(x * mask[..., None])))


class Blocks(nn.Module):
    def __init__(self, own=False):
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Block(own) for _ in range(2)), nn.Linear(6, 3)

    def forward(self, x, lengths):
        lengths = lengths * 0 + x.size(1)
        for block in self.blocks:
            x = block(x, lengths)
        return self.last(x)


def test_statements_of_submodules():
    inputs = torch.randn(3, 5, 6), torch.tensor([5, 3, 2])
    others = [(torch.randn(2, 7, 6), torch.tensor([7, 1])), (torch.randn(1, 3, 6), torch.tensor([3]))]
    found = compress_half(Blocks(), inputs, others=others, sizes=1)
    assert found.zigs == 24
    (name,) = fx_oto.Context.of(found.gm).capture.opaque
    assert re.fullmatch(r"line \d+ of Block.forward", name)


class Looping(Block):
    def forward(self, x, lengths):
        longest, total = int(lengths.max()), 0
        for step in range(longest):
            total = total + x[:, step : step + 1] * step
        return x + self.second(torch.relu(self.first(total)))


def test_statements_whose_numbers_are_counted_to_are_not_believed():
    model = nn.ModuleDict({"block": Looping(), "last": nn.Linear(6, 3)})
    model.forward = lambda x, lengths: model["last"](model["block"](x, lengths))
    x = torch.randn(3, 5, 6)
    gm = fx_oto.prepare(model, (x, torch.tensor([5, 3, 2]))).eval()
    assert fx_oto.Context.of(gm).capture.opaque == ("block",)
    shorter = torch.tensor([3, 2, 1])
    torch.testing.assert_close(gm(x, shorter), model.eval()(x, shorter))


def test_statements_that_use_parameters_take_their_module_along():
    gm = fx_oto.prepare(Blocks(own=True), (torch.randn(3, 5, 6), torch.tensor([5, 3, 2])))
    assert fx_oto.Context.of(gm).capture.opaque == ("blocks.0", "blocks.1")


def each_row(x, step, join=torch.mul):
    rows = [join(step(row), row) for row in x.unbind(1)]
    return torch.stack(rows, 1) if x.abs().max() < 1e6 else x


class Stepped(nn.Module):
    """What a function called as a whole does is said by functions that it is given."""

    def __init__(self, step, **how):
        super().__init__()
        self.a, self.b, self.c, self.step, self.how = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3), step, how

    def forward(self, x):
        return self.c(self.b(each_row(self.a(x), self.step, **self.how)).relu())


@pytest.mark.parametrize("how", [{}, {"join": lambda x, y: x + y}], ids=["mul", "lambda"])
@pytest.mark.parametrize("step", [torch.tanh, F.silu, lambda x: x * 2], ids=["torch", "python", "lambda"])
def test_functions_that_are_given_are_held(step, how):
    torch.manual_seed(0)
    done = compress_half(Stepped(step, **how), torch.randn(2, 4, 6))
    assert fx_oto.Context.of(done.gm).capture.opaque == ("each_row",)
    assert done.zigs == 12


def test_a_method_that_is_given_takes_its_module_along():
    with pytest.raises(fx_oto.TraceError, match="depends on the values in a tensor"):
        fx_oto.prepare(Stepped(nn.Linear(8, 8).forward), torch.randn(2, 4, 6))


def above_zero(x):
    if not (x > 0).all():
        raise ValueError("not above zero")
    return x


class Catching(nn.Module):
    """It goes on after an error that a function raises where numbers say so."""

    def __init__(self, error):
        super().__init__()
        self.a, self.b, self.error = nn.Linear(6, 8), nn.Linear(8, 3), error

    def forward(self, x):
        return self.b(self.caught(self.a(x)))

    def caught(self, x):
        try:
            return above_zero(x)
        except self.error:
            return x * 2


@pytest.mark.parametrize("error", [ValueError, Exception])
def test_an_error_that_code_catches_is_seen(error):
    """What is raised on the example was taken for what always is."""
    torch.manual_seed(0)
    model, x = Catching(error), torch.randn(2, 6)
    with torch.no_grad():
        model.a.bias += 10
    gm = fx_oto.prepare(model, x - 99)
    assert fx_oto.Context.of(gm).capture.opaque == ("caught",)
    for other in (x, x - 99):
        torch.testing.assert_close(gm(other), model(other))


@torch.jit.script
def gated(a: torch.Tensor, b: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    width = channels[0]
    both = a + b
    return torch.tanh(both[:, :width, :]) * torch.sigmoid(both[:, width:, :])


class Gated(nn.Module):
    """As vocoders are written, that hand the number of channels to scripted code in a tensor."""

    def __init__(self):
        super().__init__()
        self.channels = 8
        self.a, self.b, self.last = nn.Conv1d(4, 16, 3), nn.Conv1d(4, 16, 3), nn.Conv1d(8, 3, 1)

    def forward(self, x):
        return self.last(gated(self.a(x), self.b(x), torch.IntTensor([self.channels])))


def test_scripted_code_that_reads_a_number_from_a_constant_is_looked_into():
    found = compress_half(Gated(), torch.randn(2, 4, 9))
    assert found.zigs == 8
    assert not fx_oto.Context.of(found.gm).capture.opaque
