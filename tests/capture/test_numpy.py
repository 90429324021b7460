"""Numbers and arrays of numpy, and tensors that are made of them and of lists, in the code of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, tokens_around
from torch import nn

import fx_oto

TOKENS = torch.randn(2, 8, 4)
OTHERS = [torch.randn(2, 20, 4), torch.randn(5, 8, 4)]
WEIGHTS = np.linspace(0.5, 1.5, 12, dtype=np.float32)


SCALARS = {
    "float64": lambda h: h / np.sqrt(64),
    "float64 first": lambda h: np.float64(3) * h,
    "float32": lambda h: h * np.float32(0.3) - np.float32(1) / (2 + h),
    "int64": lambda h: h.reshape(h.shape[0], -1, np.int64(2), h.shape[2] // 2).flatten(np.int64(2)),
    "as a dimension": lambda h: h - h.sum(np.int64(1), keepdim=True),
    "as an index": lambda h: h[:, np.int64(2) :] + h[:, np.int64(0), None],
    "in a function": lambda h: F.softplus(h, beta=np.float64(2.0)) + torch.full((1,), np.float64(2.0)),
    "in a new tensor": lambda h: h * torch.tensor(np.float64(2.0)).float() + torch.tensor(np.float32(2.0)),
    "a negative infinity": lambda h: h.masked_fill(h > 0.1, -np.inf).clamp(min=-1),
    "loop": lambda h: torch.cat([part * float(i) for part, i in zip(h.chunk(4, -1), np.arange(4), strict=True)], -1),
}
ARRAYS = {
    "from_numpy": lambda h, values: h * torch.from_numpy(values),
    "tensor": lambda h, values: h * torch.tensor(values),
    "as_tensor": lambda h, values: h * torch.as_tensor(values, dtype=h.dtype),
    "asarray": lambda h, values: h * torch.asarray(values),
    "new_tensor": lambda h, values: h * h.new_tensor(values),
    "FloatTensor": lambda h, values: h * torch.FloatTensor(values.tolist()),
    "FloatTensor of an array": lambda h, values: h * torch.FloatTensor(values),
    "Tensor": lambda h, values: h * torch.Tensor(values.tolist()).to(h),
    "index": lambda h, values: h[:, :, np.argsort(-values)] * h,
    "index of steps": lambda h, values: h[:, np.array([2, 0, 1])],
    "one of two": lambda h, values: torch.where(torch.from_numpy(values > 1), h, h * 2),
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalars(name):
    found = holds(tokens_around(lambda h, x: SCALARS[name](h)), TOKENS, OTHERS)
    assert found.zigs


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    found = holds(tokens_around(lambda h, x: ARRAYS[name](h, WEIGHTS)), TOKENS, OTHERS)
    assert found.zigs


SIZED = {
    "arange": lambda h: h * torch.from_numpy(np.arange(h.shape[1], dtype=np.float32))[:, None],
    "linspace": lambda h: h * torch.as_tensor(np.linspace(0, 1, h.shape[1]), dtype=h.dtype)[:, None],
    "causal mask": lambda h: torch.from_numpy(np.tril(np.ones((h.shape[1], h.shape[1]))).astype("float32")).to(h) @ h,
    "list": lambda h: h * torch.FloatTensor([1.0 / (i + 1) for i in range(h.shape[1])])[:, None],
}


@pytest.mark.parametrize("name", SIZED)
def test_arrays_as_long_as_an_input(name):
    found = holds(tokens_around(lambda h, x: SIZED[name](h)), TOKENS, OTHERS, any_size=False)
    assert found.zigs
    assert found.checked


def _written(made):
    def compute(h, x):
        values = made()
        values += 1
        values.mul_(2)
        return h * values.sum()

    return compute


MADE = {
    "list": lambda: torch.FloatTensor([1.0, 2.0]),
    "array": lambda: torch.tensor(WEIGHTS),
    "numbers": lambda: torch.tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("name", MADE)
def test_a_new_tensor_is_new_in_each_call(name):
    model = tokens_around(_written(MADE[name]))
    gm = fx_oto.prepare(model, TOKENS).eval()
    model.eval()
    for _ in range(3):
        torch.testing.assert_close(gm(TOKENS), model(TOKENS), rtol=0, atol=0)


class Attention(nn.Module):
    """As tutorials write it: scaled by a number of numpy's, masked by its arrays."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        batch, steps, _ = x.shape
        q, k, v = (layer(x).view(batch, -1, 4, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / np.sqrt(2)
        later = torch.from_numpy(np.triu(np.ones([1, steps, steps]), k=1)).byte()
        scores = scores.masked_fill(later.bool().unsqueeze(1), -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, -1, 8))


def test_attention_as_in_tutorials():
    found = holds(Attention(), torch.randn(2, 6, 8), [torch.randn(5, 6, 8)], any_size=False)
    assert found.zigs == 4


class Placed(nn.Module):
    """Adds positions that numpy has counted."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions, self.last = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        places = np.tile(np.arange(tokens.shape[1]), [tokens.shape[0], 1])
        return self.last(self.embedding(tokens) + self.positions(torch.LongTensor(places)))


def test_the_line_of_the_model_is_named_that_makes_a_tensor_of_an_array():
    line = Placed.forward.__code__.co_firstlineno + 2
    with pytest.warns(fx_oto.FxOtoWarning, match=rf"the graph takes batches of 2 only.*test_numpy\.py:{line}\)"):
        fx_oto.prepare(Placed(), torch.randint(0, 20, (2, 5)))
