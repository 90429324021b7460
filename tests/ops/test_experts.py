"""Mixtures of experts: routing picks rows, so hidden units of each expert and the stream around them can go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH, HIDDEN, EXPERTS = 8, 10, 4


class Net(nn.Module):
    """A residual stream around a mixture, which is spelled by ``code``: of modules, or of stacked weights."""

    def __init__(self, code, modules, experts=EXPERTS):
        super().__init__()
        self.a, self.c, self.route, self.code = (
            nn.Linear(6, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, experts),
            code,
        )
        if modules:
            expert = (
                nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(experts)
            )
            self.experts = nn.ModuleList(expert)
        else:
            self.up, self.bias = _weight(experts, WIDTH, HIDDEN), _weight(experts, HIDDEN)
            self.down = _weight(experts, HIDDEN, WIDTH)

    def forward(self, x):
        x = self.a(x)
        rows = x.reshape(-1, WIDTH)
        return self.c(x + self.code(self, rows).view(x.shape))

    def chosen(self, x):
        return self.route(x).softmax(-1).topk(2, -1)


def _weight(*sizes):
    return nn.Parameter(torch.randn(*sizes) / 3)


def where(m, x):
    weights, chosen = m.chosen(x)
    out, mask = torch.zeros_like(x), F.one_hot(chosen, len(m.experts)).permute(2, 1, 0)
    for one, expert in enumerate(m.experts):
        place, row = torch.where(mask[one])
        out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
    return out


def nonzero(m, x):
    weights, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one, expert in enumerate(m.experts):
        row, place = (chosen == one).nonzero(as_tuple=True)
        out[row] += weights[row, place, None] * expert(x[row])
    return out


def mask(m, x):
    weights, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one, expert in enumerate(m.experts):
        rows = (chosen == one).any(-1)
        out[rows] += expert(x[rows]) * (weights * (chosen == one)).sum(-1)[rows][:, None]
    return out


def mask_of_two(m, x):
    x = x.unflatten(0, (-1, 1))
    out, chosen = torch.zeros_like(x), m.route(x).argmax(-1)
    for one, expert in enumerate(m.experts):
        out[chosen == one] = expert(x[chosen == one])
    return out


def torch_where(m, x):
    _, chosen = m.chosen(x)
    return sum(torch.where((chosen == one).any(-1, keepdim=True), f(x), 0.0) for one, f in enumerate(m.experts))


def sort(m, x):
    weights, chosen = m.chosen(x)
    order = chosen.view(-1).argsort()
    picked = x[order // 2]
    made = torch.zeros_like(picked)
    for one, expert in enumerate(m.experts):
        made = torch.where((chosen.view(-1)[order] == one)[:, None], expert(picked), made)
    return torch.zeros_like(x).index_add_(0, order // 2, made * weights.view(-1)[order, None])


def stack(m, x):
    return torch.einsum("re,red->rd", m.route(x).softmax(-1), torch.stack([expert(x) for expert in m.experts], 1))


def if_any(m, x):
    weights, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one, expert in enumerate(m.experts):
        rows = (chosen == one).any(-1)
        if rows.any():
            out[rows] += expert(x[rows]) * (weights * (chosen == one)).sum(-1)[rows][:, None]
    return out


def unless_empty(m, x):
    weights, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one, expert in enumerate(m.experts):
        row, place = torch.where(chosen == one)
        if row.shape[0] == 0:
            continue
        out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
    return out


def those_hit(m, x):
    weights, chosen = m.chosen(x)
    out, mask = torch.zeros_like(x), F.one_hot(chosen, len(m.experts)).permute(2, 1, 0)
    for one in torch.greater(mask.sum((-1, -2)), 0).nonzero():
        place, row = torch.where(mask[one].squeeze(0))
        out.index_add_(0, row, m.experts[one](x[row]) * weights[row, place, None])
    return out


def listed(m, x):
    best, chosen = m.route(x).softmax(-1).max(-1)
    out, mask = torch.zeros_like(x), F.one_hot(chosen, len(m.experts)).bool()
    for one in mask.sum(0).nonzero(as_tuple=True)[0].tolist():
        out[mask[:, one]] = getattr(m.experts, f"{one}")(x[mask[:, one]])
    return out * best[:, None]


def _sorted(m, x, by_counts):
    """Tokens in the order of their experts, of each of which it is known how many there are."""
    weights, chosen = m.chosen(x)
    order, counts = chosen.view(-1).argsort(), F.one_hot(chosen, len(m.experts)).sum((0, 1))
    made = by_counts(m.experts, x[order // 2], counts)
    put_back = torch.empty_like(made)
    put_back[order] = made
    return (put_back.view(*chosen.shape, -1) * weights[..., None]).sum(1)


def _one_after_another(experts, tokens, counts):
    made, start = [], 0
    for expert, count in zip(experts, counts, strict=True):
        if count == 0:
            continue
        made.append(expert(tokens[start : start + count]))
        start = start + count
    return torch.cat(made)


def counted(m, x):
    return _sorted(m, x, _one_after_another)


def counted_by_numpy(m, x):
    return _sorted(m, x, lambda experts, tokens, counts: _one_after_another(experts, tokens, counts.cpu().numpy()))


def binned(m, x):
    weights, chosen = m.chosen(x)
    order, counts = chosen.view(-1).argsort(), torch.bincount(chosen.view(-1), minlength=len(m.experts)).tolist()
    out, start = torch.zeros_like(x), 0
    for expert, count in zip(m.experts, counts, strict=True):
        if count:
            here = order[start : start + count]
            out.index_add_(0, here // 2, expert(x[here // 2]) * weights.view(-1)[here, None])
        start += count
    return out


def split_by_counts(m, x):
    def split(experts, tokens, counts):
        parts = tokens.split(counts.tolist())
        return torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])

    return _sorted(m, x, split)


def squeezed(m, x):
    weights, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one, expert in enumerate(m.experts):
        rows = torch.nonzero((chosen == one).any(1)).squeeze(1)
        if rows.numel() > 0:
            scale = (weights * (chosen == one)).sum(-1).index_select(0, rows)
            out = out.index_copy(0, rows, out[rows] + expert(x.index_select(0, rows)) * scale[:, None])
    return out


def between_ends(m, x):
    weights, chosen = m.chosen(x)
    order = chosen.view(-1).argsort()
    ends = F.one_hot(chosen, len(m.experts)).sum((0, 1)).cpu().numpy().cumsum(0)
    rows, scale, out = order // 2, weights.view(-1)[order], torch.zeros_like(x)
    for one, end in enumerate(ends):
        start = ends[one - 1] if one else 0
        if start == end:
            continue
        here = rows[start:end]
        out.index_add_(0, here, m.experts[one](x[here]) * scale[start:end, None])
    return out


# Which are said to be called where they are chosen, or are given as many rows as chose them.
LOOPS = [
    if_any,
    unless_empty,
    those_hit,
    listed,
    counted,
    counted_by_numpy,
    split_by_counts,
    squeezed,
    between_ends,
    binned,
]
MODULES = [where, nonzero, mask, mask_of_two, torch_where, sort, stack, *LOOPS]


def one_by_one(m, x):
    _, chosen = m.chosen(x)
    out = torch.zeros_like(x)
    for one in range(len(m.up)):
        (row,) = torch.where((chosen == one).any(-1))
        out.index_add_(0, row, F.gelu(x[row] @ m.up[one] + m.bias[one]) @ m.down[one])
    return out


def unbind(m, x):
    gates = m.route(x).softmax(-1)
    pairs = enumerate(zip(m.up.unbind(0), m.down.chunk(len(m.down)), strict=True))
    return sum(gates[:, one, None] * (F.linear(x, up.T).relu() @ down[0]) for one, (up, down) in pairs)


def einsum(m, x):
    hidden = F.gelu(torch.einsum("rd,edh->reh", x, m.up) + m.bias)
    return torch.einsum("reh,ehd,re->rd", hidden, m.down, m.route(x).softmax(-1))


def bmm(m, x):
    hidden = F.gelu(torch.bmm(x.expand(len(m.up), -1, -1), m.up) + m.bias[:, None])
    return (torch.bmm(hidden, m.down) * m.route(x).softmax(-1).T[..., None]).sum(0)


def weights_of_rows(m, x):
    best = m.route(x).argmax(-1)
    hidden = F.gelu(torch.bmm(x[:, None], m.up[best])[:, 0] + m.bias[best])
    return torch.bmm(hidden[:, None], m.down[best])[:, 0]


def weights_of_two(m, x):
    weights, chosen = m.chosen(x)
    hidden = F.gelu(torch.einsum("rd,rkdh->rkh", x, m.up[chosen]) + m.bias[chosen])
    return torch.einsum("rkh,rkhd,rk->rd", hidden, m.down[chosen], weights)


def those_hit_of_stacked_weights(m, x):
    weights, chosen = m.chosen(x)
    out, mask = torch.zeros_like(x), F.one_hot(chosen, len(m.up) + 1).permute(2, 1, 0)
    for hit in mask.sum((-1, -2)).nonzero()[:]:
        one = hit[0]
        if one == m.route(x).shape[-1]:  # stands for none
            continue
        place, row = torch.where(mask[one])
        made = F.gelu(x[row] @ m.up[one] + m.bias[one]) @ m.down[one]
        out.index_add_(0, row, made * weights[row, place, None])
    return out


STACKED = [one_by_one, those_hit_of_stacked_weights, unbind, einsum, bmm, weights_of_rows, weights_of_two]


@pytest.mark.parametrize("code", MODULES, ids=lambda code: code.__name__)
def test_of_modules(code):
    torch.manual_seed(0)
    assert compress_half(Net(code, True), torch.randn(2, 5, 6)).zigs == WIDTH + EXPERTS * HIDDEN


@pytest.mark.parametrize("code", STACKED, ids=lambda code: code.__name__)
def test_of_stacked_weights(code):
    torch.manual_seed(0)
    assert compress_half(Net(code, False), torch.randn(2, 5, 6)).zigs == WIDTH + HIDDEN


@pytest.mark.parametrize("code", [where, nonzero, mask, mask_of_two, *LOOPS], ids=lambda code: code.__name__)
def test_experts_that_the_example_does_not_choose(code):
    torch.manual_seed(0)
    found = compress_half(Net(code, True, 12), torch.randn(2, 1, 6), others=[torch.randn(8, 5, 6)])
    assert found.zigs == WIDTH + 12 * HIDDEN


@pytest.mark.parametrize("code", LOOPS, ids=lambda code: code.__name__)
def test_one_mixture_after_another(code):
    """What the second is given depends on how many tokens each expert of the first was given."""
    torch.manual_seed(0)
    first, second = Net(code, True), Net(code, True)
    found = compress_half(nn.Sequential(first, nn.Linear(3, 6), second), torch.randn(2, 5, 6))
    assert found.zigs >= 2 * (WIDTH + EXPERTS * HIDDEN)
    assert not fx_oto.Context.of(found.gm).capture.opaque


def test_a_graph_that_is_traced_already():
    torch.manual_seed(0)
    model, x = Net(mask, True).double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    gm = fx_oto.prepare(fx_oto.trace(model, x), x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert fx_oto.partition(gm).num_zigs == WIDTH + EXPERTS * HIDDEN
    for batch in (2, 7):
        x = torch.randn(batch, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)


def grouped(m, x):
    weights, chosen = m.chosen(x)
    order = chosen.view(-1).argsort()
    counts = F.one_hot(chosen.view(-1), len(m.up)).sum(0)
    ends, rows = counts.cumsum(0).int(), order // 2
    made = F.grouped_mm(F.gelu(F.grouped_mm(x[rows], m.up, offs=ends)), m.down, offs=ends)
    return torch.zeros_like(x).index_add_(0, rows, made * weights.view(-1)[order, None])


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
def test_products_of_rows_with_one_of_several_matrices():
    torch.manual_seed(0)
    x, model = torch.randn(2, 5, 6), Net(grouped, False)
    model.up, model.down = _weight(EXPERTS, WIDTH, 12), _weight(EXPERTS, 12, WIDTH)  # multiples of 16 bytes
    found = compress_half(model, x, torch.float32)
    assert found.zigs == WIDTH + 12
    assert fx_oto.cost(found.gm, x).macs >= 20 * 2 * WIDTH * 12


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("left", [3, 5, 8])
def test_grouped_products_of_widths_that_kernels_refuse(left, tmp_path):
    torch.manual_seed(0)
    model, x = Net(grouped, False).eval(), torch.randn(2, 5, 6)
    model.up, model.down = _weight(EXPERTS, WIDTH, 12), _weight(EXPERTS, 12, WIDTH)
    gm = fx_oto.prepare(model, x)
    partition = fx_oto.partition(gm)
    partition.zero_(1 - left / 12)
    small = fx_oto.compress(gm)
    assert small.get_parameter("up").shape[2] == left
    x = torch.randn(3, 7, 6)
    torch.testing.assert_close(small(x), model(x))
    fx_oto.save(small, tmp_path / "small.safetensors")
    torch.testing.assert_close(fx_oto.load(tmp_path / "small.safetensors")(x), model(x))
    again = fx_oto.prepare(small, x)
    fx_oto.partition(again).zero_(0.5)
    twice = fx_oto.compress(again)
    torch.testing.assert_close(twice(x), small(x))


def test_parts_that_are_empty_on_the_example_are_joined():
    """They have rows on other inputs, which lose the same channels."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.c(torch.cat([self.a(x[4:]), self.b(x[:4])]).relu())

    torch.manual_seed(0)
    found = compress_half(Joined(), torch.randn(3, 4), others=[torch.randn(7, 4)])
    assert found.zigs == 8
