"""How many parts code goes through is part of what it computes: every part, or a check with its line."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

import pytest
import torch
from support.exactness import CHECK
from support.kinds import fixed, holds
from torch import nn

import fx_oto

EXAMPLE, OTHERS = torch.randn(2, 5, 4), [torch.randn(2, 7, 4), torch.randn(3, 3, 4)]


class Recurrent(nn.Module):
    """A loop over the steps of ``(batch, length, 4)``."""

    def __init__(self, parts):
        super().__init__()
        self.a, self.c, self.o, self.parts = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2), parts

    def forward(self, x):
        h = 0
        for step in self.parts(self.a(x)):
            h = torch.tanh(self.c(step.reshape(-1, 16)) + h)
        return self.o(h)


PARTS = {
    "unbind": lambda x: x.unbind(1),
    "unbind, function": lambda x: torch.unbind(x, dim=1),
    "split": lambda x: x.split(1, 1),
    "torch.split": lambda x: torch.split(x, 1, dim=1),
    "split by a list": lambda x: x.split([1] * x.size(1), 1),
    "chunk": lambda x: x.chunk(x.size(1), 1),
    "torch.chunk": lambda x: torch.chunk(x, x.shape[1], dim=1),
    "tensor_split": lambda x: x.tensor_split(x.size(1), 1),
    "tensor_split by a list": lambda x: x.tensor_split(list(range(1, x.size(1))), 1),
    "hsplit": lambda x: torch.hsplit(x, x.size(1)),
    "indices": lambda x: [x[:, t] for t in range(x.size(1))],
    "indices of another size": lambda x: [x[:, t] for t in range(len(x[0]))],
    "select": lambda x: [x.select(1, t) for t in range(x.shape[1])],
    "slices": lambda x: [x[:, t : t + 1] for t in range(x.shape[1])],
    "from behind": lambda x: [x[:, t] for t in reversed(range(x.shape[1]))],
    "every other": lambda x: [x[:, t] for t in range(0, x.shape[1], 2)],
    "iteration": lambda x: list(x.transpose(0, 1)),
    "iteration, unpacked": lambda x: [*x.transpose(0, 1)],
    "iteration of a generator": lambda x: (step for step in x.transpose(0, 1)),
    "enumerate": lambda x: [step * i for i, step in enumerate(x.unbind(1))],
    "zip": lambda x: [a + b for a, b in zip(x.unbind(1), x.flip(1).unbind(1), strict=True)],
    "zip, not strict": lambda x: [a * i for a, i in zip(x.unbind(1), range(100), strict=False)],
    "map": lambda x: map(torch.sin, x.unbind(1)),
    "filter": lambda x: filter(lambda step: step.ndim == 2, x.unbind(1)),
    "reversed": lambda x: reversed(x.unbind(1)),
    "pairs": lambda x: [b - a for a, b in pairwise(x.unbind(1))] + [x[:, 0]],
    "accumulate": lambda x: list(accumulate(x.unbind(1))),
    "first and the rest": lambda x: _first_and_rest(*x.unbind(1)),
    "all but the last": lambda x: (*x.unbind(1)[:-1], x[:, -1] * 2),
    "last of a tuple": lambda x: [x.unbind(1)[-1]],
    "last of a split": lambda x: [x.split(2, 1)[-1][:, -1]],
    "sum of parts": lambda x: [sum(x.unbind(1))],
    "stacked again": lambda x: [torch.stack(x.unbind(1)[::-1], 1).cumsum(1)[:, -1]],
    "joined again": lambda x: [torch.cat(x.split(2, 1)[::-1], 1).cumsum(1)[:, 0]],
    "while": lambda x: list(_while(x)),
    "pop": lambda x: _pop(list(x.unbind(1))),
    "windows": lambda x: [window.sum(-1) for window in x.unfold(1, 2, 1).unbind(1)],
    "windows of two steps": lambda x: [part.mean(1) for part in x.split(2, 1)],
    "halves": lambda x: [part.sum(1) for part in x.split((x.size(1) + 1) // 2, 1)],
    "enumerated shape": lambda x: [x[:, t] for i, size in enumerate(x.shape) if i == 1 for t in range(size)],
    "rows by nonzero": lambda x: [x[:, t] for t in torch.arange(x.size(1)).tolist()],
    "strided views": lambda x: [x[:, t::2].sum(1) for t in range(min(2, x.size(1)))],
    "tolist": lambda x: [x[:, t] for t in list(range(x.size(1)))[::-1]],
}


def _first_and_rest(first, *rest):
    return [first, *(step * 2 for step in rest)]


def _while(x):
    t, steps = 0, []
    while t < x.size(1):
        steps.append(x[:, t])
        t += 1
    return steps


def _pop(steps):
    found = []
    while steps:
        found.append(steps.pop())
    return found


@pytest.mark.parametrize("name", PARTS)
def test_a_loop_over_steps(name):
    found = holds(Recurrent(PARTS[name]), EXAMPLE, OTHERS, any_size=False)
    assert not any(sized.is_batch for sized in found.checked)


BATCHED = {
    "unbind": lambda x: torch.stack([row.cumsum(0) for row in x.unbind(0)]),
    "iteration": lambda x: torch.stack([row.cumsum(0) for row in x]),
    "range": lambda x: torch.stack([x[i].cumsum(0) for i in range(x.size(0))]),
    "len": lambda x: torch.stack([x[i].cumsum(0) for i in range(len(x))]),
    "split": lambda x: torch.cat([row.cumsum(1) for row in x.split(1)]),
    "chunk": lambda x: torch.cat([row.cumsum(1) for row in x.chunk(x.size(0))]),
    "in place": lambda x: _rows_in_place(x.clone()),
}


def _rows_in_place(x):
    for i in range(x.size(0)):
        x[i] *= i + 1
    return x


@pytest.mark.parametrize("name", BATCHED)
def test_a_loop_over_the_batch_is_dynamic_or_announced(name):
    code = BATCHED[name]
    layers = [nn.Linear(4, 16), nn.ReLU(), Applied(code), nn.Linear(16, 2)]
    holds(nn.Sequential(*layers), EXAMPLE, OTHERS, any_size=False)


class Applied(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, x):
        return self.code(x)


@pytest.mark.parametrize("name", ["unbind", "indices", "iteration", "chunk", "while"])
def test_a_fixed_number_of_steps_is_told_with_its_line(name):
    model, x = Recurrent(PARTS[name]), OTHERS[0]
    gm = fx_oto.prepare(model, EXAMPLE)
    if fixed(gm):
        assert list(fixed(gm)) == [("x", 1)]
        assert re.search(r"test_parts\.py:\d+", fixed(gm)["x", 1])
        with pytest.raises(AssertionError, match=rf"{CHECK}.*test_parts\.py:\d+"):
            gm(x)
        assert gm(torch.randn(4, 5, 4)).shape == (4, 2)
    else:
        torch.testing.assert_close(gm(x), model(x))


class InParts(nn.Module):
    """Parts of the batch, or of the sequence, one after the other."""

    def __init__(self, split, dim):
        super().__init__()
        self.a, self.b, self.c, self.split, self.dim = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2), split, dim

    def forward(self, x):
        return torch.cat([self.c(torch.relu(self.b(part))) for part in self.split(torch.relu(self.a(x)))], self.dim)


FEW = {
    "at most four examples": (lambda x: x.split(4), 0),
    "torch.split": (lambda x: torch.split(x, split_size_or_sections=4), 0),
    "by a size, all by name": (lambda x: torch.split(split_size_or_sections=2 * x.size(0), tensor=x, dim=0), 0),
    "steps, four by four": (lambda x: x.split(8, dim=1), 1),
    "as many parts as examples": (lambda x: x.chunk(x.size(0), 1), 1),
    "two parts of the sequence": (lambda x: torch.tensor_split(x, 2, dim=1), 1),
}


@pytest.mark.filterwarnings("ignore:the graph takes batches that the model's code treats like those of 2 only")
@pytest.mark.parametrize("name", FEW)
def test_as_many_parts_at_two_sizes_may_be_more_at_a_third(name):
    found = holds(InParts(*FEW[name]), EXAMPLE, [torch.randn(9, 5, 4), torch.randn(2, 11, 4)], any_size=False)
    assert found.zigs == 24
    assert name in ("two parts of the sequence", "by a size, all by name") or found.checked


def test_a_batch_that_comes_in_parts_is_announced():
    with pytest.warns(
        fx_oto.FxOtoWarning, match=r"takes batches that .* like those of 2 only.* split \(.*test_parts.py"
    ):
        gm = fx_oto.prepare(InParts(*FEW["at most four examples"]), EXAMPLE)
    with pytest.raises(AssertionError, match=r"the length of split \(.*test_parts.py:\d+\) was 1; trace it on such"):
        gm(torch.randn(5, 5, 4))
