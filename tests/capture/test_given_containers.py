"""Lists, dictionaries and objects that the caller gives: changes in them are announced; their order decides, or not."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, UserDict, defaultdict, deque
from types import SimpleNamespace

import pytest
import torch
from support.exactness import compress_half, randomise
from support.saved import saved
from support.vision import without_compiled_library
from torch import nn
from torch.utils._pytree import tree_leaves

import fx_oto

P, Q, R = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))


class Stores(nn.Module):
    """Does something with what it is given beside its input."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b, self.change = nn.Linear(4, 12), nn.Linear(12, 4), change

    def forward(self, x, store=None, **others):
        h = self.a(x).relu()
        self.change(self, store if store is not None else others, h)
        return self.b(h)


def appended(m, store, h):
    store.append(h.mean())


def replaced(m, store, h):
    store[0] = h.mean()


def set_by_key(m, store, h):
    store["h"] = h.mean()


def removed(m, store, h):
    del store["k"]


CHANGES = {
    "append": (appended, []),
    "append to what is there": (appended, [P]),
    "extend": (lambda m, store, h: store.extend([h, h]), [1]),
    "insert": (lambda m, store, h: store.insert(0, h), [P]),
    "+=": (lambda m, store, h: store.__iadd__([h]), [P]),
    "an item of a list": (replaced, [P]),
    "a number in a list": (lambda m, store, h: store.__setitem__(0, store[0] + 1), [3]),
    "a text in a list": (lambda m, store, h: store.__setitem__(0, "seen"), ["new"]),
    "pop": (lambda m, store, h: store.pop(), [P]),
    "clear": (lambda m, store, h: store.clear(), [P, Q]),
    "turned": (lambda m, store, h: store.reverse(), [P, Q]),
    "an entry": (set_by_key, {}),
    "an entry that is there": (set_by_key, {"h": P}),
    "an ordered dictionary": (set_by_key, OrderedDict()),
    "a default dictionary": (lambda m, store, h: store["h"].append(h), defaultdict(list)),
    "a user's dictionary": (set_by_key, UserDict()),
    "update": (lambda m, store, h: store.update(k=h), {"x": P}),
    "setdefault": (lambda m, store, h: store.setdefault("k", h), {}),
    "del": (removed, {"k": P, "l": Q}),
    "popitem": (lambda m, store, h: store.popitem(), {"k": P}),
    "in another": (lambda m, store, h: store["l"][0].append(h), {"l": [[]], "m": P}),
    "in a tuple": (lambda m, store, h: store[1].append(h), (P, [])),
    "a deque": (appended, deque([P], maxlen=3)),
    "a full deque": (appended, deque([P], maxlen=1)),
    "a set": (lambda m, store, h: store.add("seen"), {"new"}),
    "an attribute": (lambda m, store, h: setattr(store, "h", h), SimpleNamespace()),
    "an attribute's entry": (lambda m, store, h: store.seen.append(h), SimpleNamespace(seen=[], x=P)),
    "in training": (lambda m, store, h: store.append(h) if m.training else None, []),
    "in evaluation": (lambda m, store, h: None if m.training else store.append(h), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_code_puts_into_a_container_of_the_callers_is_announced(what):
    change, store = CHANGES[what]
    given, model = copy.deepcopy(store), Stores(change)
    with pytest.warns(UserWarning, match=r"changes what is in store, which is given to it.* its graph does not"):
        gm = fx_oto.prepare(model, (P, given))
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(P, given), model(P, copy.deepcopy(store)))
    assert repr(given) == repr(store)  # neither by prepare, nor by the graph


def test_the_line_is_named_that_computes_it():
    with pytest.warns(UserWarning, match=r"test_given_containers.py:\d+\); its graph does not") as noted:
        fx_oto.prepare(Stores(appended), (P, []))
    assert len(noted) == 1  # of both modes


class Holds(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(4, 12), nn.Linear(12, 4), read

    def forward(self, x, held):
        return self.b(self.a(self.read(x, held)).relu())


def test_what_is_in_a_deque_is_read_anew():
    model = Holds(lambda x, held: x * held[-1] + sum(held))
    gm = fx_oto.prepare(model, (P, deque([Q, 2.0], maxlen=4)))
    for other in (deque([R, 3.0]), deque([Q, 2.0], maxlen=2)):
        torch.testing.assert_close(gm(P, other), model(P, other))
    with pytest.raises(AssertionError, match="the length of held was 2"):
        gm(P, deque([Q]))


@pytest.mark.parametrize("kind", [set, frozenset])
def test_what_is_in_a_set_is_checked(kind, tmp_path):
    model = Holds(lambda x, held: x * 2 if "twice" in held else x)
    gm = fx_oto.prepare(model, (P, kind({"twice", 3, None})))
    for graph in (gm, saved(fx_oto.compress(zeroed(gm)), tmp_path)):
        graph(P, kind({3, None, "twice"}))
        with pytest.raises(AssertionError, match="the graph was captured where held was"):
            graph(P, kind({3}))
    with pytest.raises(fx_oto.TraceError, match="held is a set of tensors, in which no graph finds one: give a list"):
        fx_oto.prepare(model, (P, {Q}))


def zeroed(gm):
    fx_oto.partition(gm).zero_(0.5)
    return gm


def put_back(m, store, h):
    store["h"] = h
    store["x"] = store.pop("x")
    store["n"], store["t"] = store["n"], "".join("te")
    del store["h"]
    dict(store)["z"] = h
    [*store.values()].append(h)


def gone(m, store, h):
    """What is the code's own is nobody else's."""
    store["z"] = h
    store.pop("y")


def test_what_is_as_it_was_or_the_codes_own_is_not_announced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fx_oto.prepare(Stores(put_back), (P, {"x": Q, "n": 3, "t": "te"}))
        fx_oto.prepare(Stores(gone), ((P,), {"y": Q, "x2": Q}))
        fx_oto.prepare(Stores(lambda m, store, h: store[0].add_(1)), (P, [Q]))


class Reads(nn.Module):
    """Makes its input of a dictionary."""

    def __init__(self, read):
        super().__init__()
        self.read, self.b = read, nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
        self.heads = nn.ModuleDict({name: nn.Linear(4, 12) for name in "pqr"})

    def forward(self, given=None, **others):
        out = self.read(self, others if given is None else given)
        return out if isinstance(out, dict) else self.b(out)


def last_of(d):
    for value in d.values():
        last = value
    return last


def filled(m, d):
    out = torch.zeros(3, 12)
    for i, one in enumerate(d.values()):
        out[:, 4 * i : 4 * i + 4] = one
    return m.heads["p"](out[:, :4]) + m.heads["q"](out[:, 4:8])


def in_order(m, p, q, r):
    return m.heads["p"](p) * m.heads["q"](q) - m.heads["r"](r)


def sum_of(values):
    first, *others = values
    return first - 2 * sum(others)


def in_turn(m, d):
    h = d["p"] @ torch.ones(4, 12)
    for name in d:
        h = (h + m.heads[name](d[name])).relu() * 1.5
    return h


BY_ORDER = {
    "values": lambda m, d: m.heads["p"](sum_of(d.values())),
    "cat of values": lambda m, d: torch.cat(list(d.values()), -1).relu(),
    "items": lambda m, d: torch.cat([one for _, one in d.items()], -1),
    "keys": lambda m, d: torch.cat([d[key] for key in d], -1),
    "the first": lambda m, d: m.heads["p"](next(iter(d.values()))),
    "the last": lambda m, d: m.heads["p"](last_of(d)).relu(),
    "the second": lambda m, d: m.heads["p"](list(d.values())[1]),
    "unpacked": lambda m, d: in_order(m, *d.values()),
    "a name": lambda m, d: m.heads[next(iter(d))](d["p"]),
    "numbered": lambda m, d: m.heads["p"](sum((i + 1) * one for i, one in enumerate(d.values()))),
    "written": filled,
    "each in turn": in_turn,
}


BY_KEY = {
    "by key": lambda m, d: torch.cat([d["p"], d["q"], d["r"]], -1),
    "sorted": lambda m, d: torch.cat([d[key] for key in sorted(d)], -1),
    "each by its head": lambda m, d: {key: m.b(m.heads[key](one).relu()) for key, one in d.items()},
    "handed on": lambda m, d: by_name(m, **d),
    "copied": lambda m, d: by_name(m, **{**dict(d), "z": 1}),
    "asked for": lambda m, d: m.heads["p"](d.get("p", d["q"])) if "q" in d and len(d) == 3 else m.heads["q"](d["q"]),
    "searched": lambda m, d: m.heads["p"](next(one for key, one in d.items() if key == "q")),
    "written by name": lambda m, d: by_name(m, **d).mul_(2).relu_(),
}


def by_name(m, q, p, r, z=None):
    return m.heads["r"](r) * m.heads["q"](q) + m.heads["p"](p)


def as_given(name, d):
    """The dictionary as inputs: as one argument, as part of another, or as arguments by name."""
    if name == "by name":
        return (), d
    if name == "attribute":
        return (SimpleNamespace(d=d),), {}
    return ({"dict": d, "user": UserDict(d), "ordered": OrderedDict(d), "list": [d]}[name],), {}


class From(Reads):
    def forward(self, given=None, **others):
        given = given[0] if isinstance(given, list) else getattr(given, "d", given)
        return super().forward(given, **others)


def compacted(read, way):
    model = randomise(From(read)).eval()
    gm = fx_oto.prepare(model, as_given(way, {"p": P, "q": Q, "r": R}))
    fx_oto.partition(gm).zero_(0.5)
    return model, gm, fx_oto.compress(gm)


ORDERS = ["pqr", "qpr", "rqp", "qrp", "prq"]


def called(model, way, order):
    args, kwargs = as_given(way, {key: {"p": P, "q": Q, "r": R}[key] for key in order})
    return model(*args, **kwargs)


def leaves(value):
    return tree_leaves({key: value[key] for key in sorted(value)} if isinstance(value, dict) else value)


@pytest.mark.parametrize("way", ["dict", "user", "ordered", "list", "by name"])
@pytest.mark.parametrize("what", BY_KEY)
def test_code_that_reads_by_key_takes_any_order(what, way, tmp_path):
    model, gm, small = compacted(BY_KEY[what], way)
    for order in ORDERS:
        for training in (False, True):
            for graph in (gm, small):
                pairs = zip(*(leaves(called(one.train(training), way, order)) for one in (graph, model)), strict=True)
                for found, expected in pairs:
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["dict", "user", "ordered", "list", "by name"])
@pytest.mark.parametrize("what", BY_ORDER)
def test_an_order_that_code_goes_by_is_checked(what, way, tmp_path):
    model, gm, small = compacted(BY_ORDER[what], way)
    for graph in (gm, small, saved(small, tmp_path)):
        torch.testing.assert_close(called(graph, way, "pqr"), called(model, way, "pqr"), rtol=1e-4, atol=1e-5)
        name = "others" if way == "by name" else "given"
        with pytest.raises(
            AssertionError, match=rf"what is in {name} came in the order \['p', 'q', 'r'\], and the model"
        ):
            called(graph, way, "qrp")
        if what not in ("the first", "a name", "the last", "the second", "values"):  # which go by a part of the order
            for order in ORDERS[1:]:
                with pytest.raises(AssertionError, match="came in the order"):
                    called(graph, way, order)


class Two(Reads):
    def forward(self, given, others):
        return self.b(self.heads["p"](given["p"] + given["q"]) + self.heads["q"](next(iter(others.values()))))


def test_only_the_argument_whose_order_matters_is_checked():
    model, given = Two(None), {"p": P, "q": Q}
    gm = fx_oto.prepare(model, (given, given))
    turned = {"q": Q, "p": P}
    torch.testing.assert_close(gm(turned, given), model(turned, given))
    with pytest.raises(AssertionError, match="what is in others came in the order"):
        gm(given, turned)


def test_a_model_without_dictionaries_is_not_captured_again(monkeypatch):
    calls = []
    from fx_oto.capture import orders

    before = orders._compute_the_same
    monkeypatch.setattr(orders, "_compute_the_same", lambda *runs: calls.append(runs) or before(*runs))
    fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), P)
    fx_oto.prepare(Reads(lambda m, d: m.heads["p"](d["p"])), ({"p": P},))
    assert not calls
    fx_oto.prepare(Reads(lambda m, d: m.heads["p"](d["p"])), ({"p": P, "q": Q},))
    assert calls


def test_torchscript_and_export_take_the_check(tmp_path):
    _, _, small = compacted(BY_ORDER["cat of values"], "dict")
    given = {"p": P, "q": Q, "r": R}
    exported = torch.export.export(small, (given,)).module()
    torch.testing.assert_close(exported(given), small(given))


def test_a_cache_of_transformers_is_left_as_it_was():
    without_compiled_library()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, num_attention_heads=4)).eval()
    tokens = torch.randint(60, (2, 9))
    with torch.no_grad():
        past = model(tokens[:, :6], use_cache=True).past_key_values
        with pytest.warns(UserWarning, match="the model changes what is in past_key_values"):
            gm = fx_oto.prepare(model, {"input_ids": tokens[:, 6:], "past_key_values": past, "use_cache": True})
        assert past.get_seq_length() == 6
        found = gm(input_ids=tokens[:, 6:], past_key_values=past, use_cache=True)[0]
        torch.testing.assert_close(found, model(tokens)[0][:, 6:], rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """Is given the states of its layers, which it counts and takes apart."""

    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(4, 8), nn.LSTMCell(8, 6)])
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x, states):
        new = []
        for cell, state in zip(self.cells, states, strict=True):
            x, c = cell(x, tuple(state.values()) if isinstance(state, dict) else state)
            new.append((x, c))
        return self.last(self.first(x).relu()), new


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: dict(zip("hc", pair, strict=True))])
@pytest.mark.parametrize("outer", [tuple, list])
def test_states_are_given_in_containers_within_containers(outer, kind):
    def given(batch):
        states = [kind(torch.randn(2, batch, width)) for width in (8, 6)]
        return torch.randn(batch, 4), outer(states)

    assert compress_half(Recurrent(), given(2), others=[given(5)]).params_left < 1
