"""Tokens that go: rows of embeddings, and scores in the outputs; the compact model counts ids anew."""

from __future__ import annotations

import copy

import pytest
import torch
from support.saved import saved
from support.vision import without_compiled_library
from torch import nn
from torch.nn import functional

import fx_oto

TOKENS, WIDTH = 20, 8


def ids(*shape, dtype=torch.int64, seed=0):
    return torch.randint(0, TOKENS, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Model(nn.Module):
    """A small language model; its parts are what subclasses change."""

    def __init__(self, tied=False, padding=None):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH, padding_idx=padding)
        self.positions = nn.Embedding(16, WIDTH)
        self.block, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def features(self, tokens):
        x = self.look_up(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return x + self.out(self.block(x).relu())

    def look_up(self, tokens):
        return self.embed(tokens)

    def forward(self, tokens):
        return self.head(self.features(tokens))


class Functional(Model):
    def look_up(self, tokens):
        return functional.embedding(tokens, self.embed.weight, 5)


class Moved(Model):
    def look_up(self, tokens):
        return self.embed(tokens.t().reshape(-1)).unflatten(0, (tokens.shape[1], -1)).transpose(0, 1)


class Twice(Model):
    """Two tables that the same ids look up."""

    def __init__(self):
        super().__init__()
        self.worth = nn.Embedding(TOKENS, 1)

    def look_up(self, tokens):
        return self.embed(tokens) * self.worth(tokens) + torch.zeros_like(tokens).unsqueeze(-1)


class Product(Model):
    def forward(self, tokens):
        return torch.nn.functional.linear(self.features(tokens), self.embed.weight), self.features(tokens)


class Classifies(Model):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        return {"classes": self.head(self.features(tokens).mean(1))}


class Last(Model):
    """Scores along the second dimension, as a cross entropy takes them, beside features."""

    def forward(self, tokens):
        x = self.features(tokens)
        return self.head(x).transpose(1, 2), x


class ByMode(Model):
    def forward(self, tokens):
        x = self.features(tokens)
        return self.head(x * 2) if self.training else self.head(x)


NETWORKS = {
    "head of its own": Model,
    "tied": lambda: Model(tied=True),
    "tied, padding": lambda: Model(tied=True, padding=7),
    "padding at the end": lambda: Model(padding=TOKENS - 1),
    "functional": Functional,
    "moved": Moved,
    "twice": Twice,
    "product": Product,
    "transposed": Last,
    "classes": Classifies,
    "by mode": ByMode,
}


def cut(model, example, **options):
    """The compact model, its ids as the full one counts them, with half of each family gone at random."""
    gm = fx_oto.prepare(model, example, prune_vocabulary=True, **options)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    return small, fx_oto.Context.of(small).kept["embed.weight", 0][0]


def leaves(value):
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else [value]


def assert_same(model, small, kept, tokens):
    """Outputs and gradients at ids that are left, in both modes."""
    for training in (False, True):
        full, compact = (copy.deepcopy(one).double().train(training) for one in (model, small))
        expected, found = leaves(full(kept[tokens])), leaves(compact(tokens))
        for dim in (1, 2):
            expected = [one.index_select(dim, kept) if one.shape[dim:][:1] == (TOKENS,) else one for one in expected]
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)
        for outputs in (expected, found):
            sum(one.sin().sum() for one in outputs).backward()
        plan = fx_oto.Context.of(small).get(fx_oto.SlicingPlan)
        theirs = {name: parameter.grad for name, parameter in full.named_parameters()}
        for name, parameter in compact.named_parameters():
            torch.testing.assert_close(parameter.grad, plan.left_of(name, theirs[name]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_tokens_go(name, dtype):
    model = NETWORKS[name]()
    small, kept = cut(model, ids(2, 5, dtype=dtype), keep_tokens=[1, 3])
    assert TOKENS // 2 <= len(kept) < TOKENS // 2 + 3
    assert {1, 3} <= set(kept.tolist())
    assert fx_oto.Context.of(small).get(fx_oto.VerificationReport).gradients > 0
    for shape in ((2, 5), (3, 9)):
        assert_same(model, small, kept, torch.randint(0, len(kept), shape))


@pytest.mark.parametrize("name", ["tied, padding", "functional", "padding at the end"])
def test_the_row_that_does_not_learn_stays_that(name):
    model = NETWORKS[name]()
    small, kept = cut(model, ids(2, 5))
    padding = 5 if name == "functional" else model.embed.padding_idx
    assert padding in kept
    place = kept.tolist().index(padding)
    small.get_submodule("embed").weight.grad = None
    torch.nn.functional.cross_entropy(small(torch.full((2, 5), place)).flatten(0, 1), torch.zeros(10).long()).backward()
    if name != "tied, padding":  # where the head learns
        assert not small.get_submodule("embed").weight.grad[place].any()


def test_the_user_gets_the_class_back():
    model = Model(tied=True, padding=7)
    small, kept = cut(model, ids(2, 5))
    mine, tokens = fx_oto.write_back(small, model), torch.randint(0, len(kept), (3, 4))
    assert type(mine) is Model
    assert mine.head.weight is mine.embed.weight
    assert (mine.embed.num_embeddings, mine.embed.padding_idx) == (len(kept), kept.tolist().index(7))
    torch.testing.assert_close(mine(tokens), small(tokens))


def test_files_and_a_second_round_know_the_first_model_s_tokens(tmp_path):
    model = Model(tied=True)
    small, kept = cut(model, ids(2, 5))
    loaded = saved(small, tmp_path)
    assert torch.equal(fx_oto.Context.of(loaded).kept["embed.weight", 0][0], kept)
    smaller, left = cut(small, torch.randint(0, len(kept), (2, 5)))
    assert len(left) < len(kept)
    assert set(left.tolist()) < set(kept.tolist())
    tokens = torch.randint(0, len(left), (3, 4))
    torch.testing.assert_close(smaller(tokens), model_zeroed(small, model, left, tokens), rtol=1e-4, atol=1e-5)


def model_zeroed(small, model, left, tokens):
    """What the first model returns; the second round has set more of the shared parameters of ``small`` to zero."""
    kept = fx_oto.Context.of(small).kept["embed.weight", 0][0]
    return small(torch.searchsorted(kept, left[tokens]))[..., torch.searchsorted(kept, left)]


def test_a_training_that_prunes_tokens():
    torch.manual_seed(0)
    model = Model(tied=True)
    gm = fx_oto.prepare(model, ids(2, 5), prune_vocabulary=True, keep_tokens=[0])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-2, target_params=0.5, total_steps=40)
    for step in range(40):
        tokens = ids(8, 6, seed=step) % 6  # the others are never seen
        optimizer.zero_grad()
        logits = model(tokens)
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    small = fx_oto.compress(gm)
    kept = fx_oto.Context.of(small).kept["embed.weight", 0][0]
    assert 0 in kept
    assert len(kept) < TOKENS
    assert_same(model, small, kept, torch.randint(0, len(kept), (3, 7)))


class Compares(Model):
    def look_up(self, tokens):
        return self.embed(tokens) * (tokens != 0).unsqueeze(-1)


class Counts(Model):
    def look_up(self, tokens):
        return self.embed((tokens + 1) % TOKENS)


class Returns(Model):
    def forward(self, tokens):
        return super().forward(tokens), tokens


class LooksUpOthers(Model):
    def look_up(self, tokens):
        return self.embed(tokens) + self.embed(torch.arange(tokens.shape[1]))


class Normalizes(Model):
    def forward(self, tokens):
        return self.head(self.features(tokens)).log_softmax(-1)


@pytest.mark.parametrize("kind", [Compares, Counts, Returns])
def test_ids_that_mean_more_than_rows_are_refused(kind):
    with pytest.raises(fx_oto.SettingsError, match="nothing reads but embeddings"):
        fx_oto.prepare(kind(), ids(2, 5), prune_vocabulary=True)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (LooksUpOthers, "the vocabulary that indices look up"),
        (Normalizes, "an output holds as many numbers, of which none can go"),
    ],
)
def test_tokens_that_other_code_needs_stay(kind, why):
    gm = fx_oto.prepare(kind(), ids(2, 5), prune_vocabulary=True)
    assert any(why in str(axis.reason) for axis in fx_oto.partition(gm).frozen if axis.tensor == "embed.weight")
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm).get_submodule("embed").num_embeddings == TOKENS


def test_positions_are_no_tokens():
    class Positions(Model):
        def forward(self, tokens, places):
            x = self.embed(tokens) + self.positions(places)
            return self.head(self.block(x).relu() @ self.out.weight.T)

    places = torch.arange(5).expand(2, 5)
    model = Positions()
    gm = fx_oto.prepare(model, (ids(2, 5), places), prune_vocabulary=True)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert small.get_submodule("positions").num_embeddings == 16
    assert small.get_submodule("embed").num_embeddings == TOKENS // 2


@pytest.mark.parametrize("tied", [False, True])
def test_two_vocabularies_of_one_length_go_together(tied):
    """A translator: which of the two the scores are of, nothing tells."""

    class Translates(Model):
        def __init__(self):
            super().__init__()
            self.other = nn.Embedding(TOKENS, WIDTH)
            if tied:
                self.head.weight = self.other.weight

        def forward(self, tokens, others):
            return self.head(self.features(tokens).mean(1, keepdim=True) * self.other(others))

    model, inputs = Translates(), (ids(2, 5), ids(2, 4, seed=1))
    small, kept = cut(model, inputs)
    assert torch.equal(fx_oto.Context.of(small).kept["other.weight", 0][0], kept)
    new = [torch.randint(0, len(kept), (3, length)) for length in (6, 7)]
    torch.testing.assert_close(small(*new), model(*(kept[one] for one in new))[..., kept], rtol=1e-4, atol=1e-5)


def test_a_square_table_is_kept_whole():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Embedding(8, 8), nn.Linear(8, 8)

        def forward(self, tokens):
            return self.inner(self.embed(tokens))

    with pytest.raises(fx_oto.SettingsError, match="prune_vocabulary"):
        fx_oto.prepare(Square(), torch.zeros(2, 3, dtype=torch.int64), prune_vocabulary=True)


def test_without_the_option_the_vocabulary_stays():
    gm = fx_oto.prepare(Model(), ids(2, 5))
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm).get_submodule("embed").num_embeddings == TOKENS


def test_settings():
    for tokens in ([TOKENS], [-1]):
        with pytest.raises(fx_oto.SettingsError, match=f"keep_tokens must be ids of the {TOKENS} tokens of 'tokens'"):
            fx_oto.prepare(Model(), ids(2, 5), prune_vocabulary=True, keep_tokens=tokens)
    for tokens in (["a"], [1.5], 5, "12", torch.tensor([0.5]), None):
        with pytest.raises(fx_oto.SettingsError, match=r"keep_tokens must be ids of tokens, such as .*; found"):
            fx_oto.prepare(Model(), ids(2, 5), prune_vocabulary=True, keep_tokens=tokens)
    for tokens in (torch.tensor([1, 3]), torch.tensor([1, 3]).numpy(), iter((1, 3))):
        gm = fx_oto.prepare(Model(), ids(2, 5), prune_vocabulary=True, keep_tokens=tokens)
        assert "keep_tokens=(1, 3)" in fx_oto.report(gm).records[0].options
    with pytest.raises(fx_oto.SettingsError, match="keep_tokens is for prune_vocabulary=True"):
        fx_oto.prepare(Model(), ids(2, 5), keep_tokens=[1])
    pipeline = fx_oto.default_pipeline(prune_vocabulary=True)
    with pytest.raises(fx_oto.SettingsError, match="prune_vocabulary cannot be used with passes"):
        fx_oto.prepare(Model(), ids(2, 5), passes=pipeline, prune_vocabulary=True)
    assert fx_oto.partition(fx_oto.prepare(Model(), ids(2, 5), passes=pipeline)).families[0].name == "embed.weight"


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_says_its_vocabulary(tied, tmp_path):
    without_compiled_library()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, use_cache=False, pad_token_id=5,
    )  # fmt: skip
    model, tokens = transformers.LlamaForCausalLM(config).eval(), torch.randint(60, (2, 6))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    gm = fx_oto.prepare(model, inputs, prune_vocabulary=True, keep_tokens=[0, 1, 2])
    limits = fx_oto.config_limits(gm, model)
    assert "model.embed_tokens.weight[0]" in limits.uniform
    assert not limits.unprunable
    keep = ["model.layers", "model.embed_tokens.weight[1]"]
    pruned = fx_oto.prune(gm, target_params=0.9, unprunable=keep, uniform=["model.embed_tokens.weight[0]"])
    assert pruned is not None
    mine = fx_oto.compress(gm, into=model)
    fx_oto.WriteBack.of(mine).check_config()
    kept = fx_oto.Context.of(fx_oto.compress(gm)).kept["model.embed_tokens.weight", 0][0]
    assert mine.config.vocab_size == len(kept) < 60
    assert {0, 1, 2, 5} <= set(kept.tolist())
    new = torch.randint(0, len(kept), (3, 7))
    torch.testing.assert_close(mine(new).logits, model(kept[new]).logits[..., kept])
    mine.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(new).logits, mine(new).logits)
