"""Random blocks on tokens, of shape ``(batch, LENGTH, width)``: attention, mixing, gates, recurrence, reshapes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

LENGTH = 5
_ACTIVATIONS = (F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid)


def linear(net, choose, widths, source):
    width = choose.choice((4, 6, 8, 12))
    layer = net.keep(nn.Linear(widths[source], width, bias=choose.random() < 0.7))
    return (lambda pool, x: layer(x)), width


def mlp(net, choose, widths, source):
    width, act = widths[source], choose.choice(_ACTIVATIONS)
    first, second = net.keep(nn.Linear(width, 10)), net.keep(nn.Linear(10, width))
    return (lambda pool, x: x + second(act(first(x)))), width


def norm(net, choose, widths, source):
    width = widths[source]
    groups = choose.choice([g for g in (1, 2, width) if width % g == 0])
    kind = choose.randrange(6)
    if kind < 2:
        layer = net.keep((nn.LayerNorm, nn.RMSNorm)[kind](width))
        return (lambda pool, x: layer(x)), width
    if kind < 5:
        layer = net.keep((nn.GroupNorm(groups, width), nn.InstanceNorm1d(width), nn.BatchNorm1d(width))[kind - 2])
        return (lambda pool, x: layer(x.transpose(1, 2)).transpose(1, 2)), width
    scale = net.weight(width)
    return (
        lambda pool, x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * scale()
    ), width


def activation(net, choose, widths, source):
    act = choose.choice(_ACTIVATIONS)
    return (lambda pool, x: act(x)), widths[source]


def add(net, choose, widths, source):
    fitting = [i for i, width in enumerate(widths) if width == widths[source]]
    other, times = choose.choice(fitting), choose.random() < 0.3
    return (lambda pool, x: x * pool[other] if times else x + pool[other]), widths[source]


def concatenate(net, choose, widths, source):
    other = choose.randrange(len(widths))
    if widths[source] + widths[other] > 24:
        return None
    return (lambda pool, x: torch.cat([x, pool[other]], -1)), widths[source] + widths[other]


def pieces(net, choose, widths, source):
    width = widths[source]
    first = choose.randrange(1, width) if width > 1 else 1
    layer, how = net.keep(nn.Linear(first, 6)), choose.randrange(3)

    def step(pool, x):
        if how == 0:
            return layer(x[..., :first])
        one, two = torch.split(x, [first, width - first], -1) if how == 1 else (x[..., :first], x[..., first:])
        return torch.cat([two, layer(one)], -1)

    return step, 6 if how == 0 else 6 + width - first


def position(net, choose, widths, source):
    table, detached = net.weight(1, LENGTH, widths[source]), choose.random() < 0.3
    return (lambda pool, x: x + (table().detach() if detached else table())), widths[source]


def layer_scale(net, choose, widths, source):
    width = widths[source]
    scale, layer = net.weight(width), net.keep(nn.Linear(width, width))
    return (lambda pool, x: x + scale() * layer(x)), width


def mixing(net, choose, widths, source):
    first, second = net.keep(nn.Linear(LENGTH, 7)), net.keep(nn.Linear(7, LENGTH))
    how = choose.randrange(2)

    def step(pool, x):
        mixed = second(F.gelu(first(x.transpose(1, 2))))
        return x + mixed.transpose(1, 2) if how else mixed.permute(0, 2, 1)

    return step, widths[source]


def gate(net, choose, widths, source):
    width, how = widths[source], choose.randrange(5)
    layer = net.keep(nn.Linear(width, width if how < 3 else 2 * width))

    def step(pool, x):
        if how == 0:
            return x * torch.sigmoid(layer(x))
        if how == 1:
            return x * torch.sigmoid(layer(x.mean(1, keepdim=True)))
        if how == 2:
            return x * layer(x).softmax(-1)
        if how == 3:
            return F.glu(layer(x), -1)
        value, gates = layer(x).chunk(2, -1)
        return value * F.silu(gates)

    return step, width


def swiglu(net, choose, widths, source):
    width = widths[source]
    first, second, third = net.keep(nn.Linear(width, 9)), net.keep(nn.Linear(width, 9)), net.keep(nn.Linear(9, width))
    return (lambda pool, x: x + third(F.silu(first(x)) * second(x))), width


def convolution(net, choose, widths, source):
    width, causal = widths[source], choose.random() < 0.5
    groups = choose.choice([g for g in (1, 2, width) if width % g == 0])
    layer = net.keep(nn.Conv1d(width, width, 3, padding=2 if causal else 1, groups=groups))

    def step(pool, x):
        y = layer(x.transpose(1, 2))
        return (y[..., :LENGTH] if causal else y).transpose(1, 2)

    return step, width


def recurrent(net, choose, widths, source):
    both, kind = choose.random() < 0.4, choose.choice((nn.GRU, nn.LSTM, nn.RNN))
    layers = choose.choice((1, 2))
    layer = net.keep(kind(widths[source], 4, num_layers=layers, batch_first=True, bidirectional=both))
    how = choose.randrange(2)
    if how:
        return (lambda pool, x: layer(x)[0]), 8 if both else 4
    return (lambda pool, x: layer(x.flip(1))[0].flip(1)), 8 if both else 4


def shared(net, choose, widths, source):
    layers = [layer for layer in net.layers if isinstance(layer, nn.Linear) and layer.in_features == widths[source]]
    attentions = [x for x in net.layers if isinstance(x, nn.MultiheadAttention) and x.embed_dim == widths[source]]
    if not layers + attentions:
        return None
    layer = choose.choice(layers + attentions)
    if layer in attentions:
        return (lambda pool, x: layer(x, x, x)[0]), widths[source]
    return (lambda pool, x: layer(x)), layer.out_features


def inside(net, choose, widths, source):
    """Something done to a width that is split in two, and merged again."""
    width, how = widths[source], choose.randrange(7)
    parts = choose.choice([parts for parts in (1, 2, 3, 4) if width % parts == 0])
    norm, layer = net.keep(nn.LayerNorm(width // parts)), net.keep(nn.Linear(width // parts, 3))
    scale = net.weight(parts, 1)

    inner = (
        lambda grid: F.relu(grid).flatten(2),
        lambda grid: norm(grid).flatten(2),
        lambda grid: layer(grid).flatten(2),
        lambda grid: (grid * scale()).view(-1, LENGTH, width),
        lambda grid: grid.transpose(2, 3).reshape(-1, LENGTH, width),
        lambda grid: grid.softmax(-1).flatten(-2),
        lambda grid: grid.mean(2),
    )[how]

    def step(pool, x):
        return inner(x.reshape(x.shape[0], LENGTH, parts, -1))

    return step, {2: 3 * parts, 6: width // parts}.get(how, width)


def normalised(net, choose, widths, source):
    total = choose.random() < 0.5
    layer = net.keep(nn.Linear(widths[source], 6))
    return (lambda pool, x: layer(x / (x.pow(2).sum(-1, True) + 1e-3).sqrt() if total else F.normalize(x, dim=-1))), 6


def tokens_as_width(net, choose, widths, source):
    first, second = net.keep(nn.Linear(LENGTH * widths[source], 6)), net.keep(nn.Linear(6, LENGTH * 4))
    return (lambda pool, x: second(F.relu(first(x.flatten(1)))).unflatten(1, (LENGTH, 4))), 4


def by_matrix(net, choose, widths, source):
    matrix, how = net.weight(widths[source], 6), choose.randrange(3)

    def step(pool, x):
        if how == 0:
            return x @ matrix()
        return torch.einsum("bld,de->ble", x, matrix()) if how == 1 else F.linear(x, matrix().t())

    return step, 6


def _heads_of(choose, width):
    return choose.choice([heads for heads in (1, 2, 4) if width % heads == 0])


def attention_module(net, choose, widths, source):
    width, options = widths[source], {"bias": choose.random() < 0.7, "add_bias_kv": choose.random() < 0.2}
    layer = net.keep(nn.MultiheadAttention(width, _heads_of(choose, width), batch_first=True, **options))
    weights, residual = choose.random() < 0.5, choose.random() < 0.7
    fitting = [i for i, w in enumerate(widths) if w == width]
    memory = choose.choice([source, choose.choice(fitting)])

    def step(pool, x):
        y = layer(x, pool[memory], pool[memory], need_weights=weights)[0]
        return x + y if residual else y

    return step, width


def _explicit(scale):
    def attend(q, k, v):
        return ((q * scale(q)) @ k.transpose(-2, -1)).softmax(-1) @ v

    return attend


def _einsum(q, k, v):
    return torch.einsum("bhls,bhsd->bhld", torch.einsum("bhld,bhsd->bhls", q, k).softmax(-1), v)


_ATTENDS = (
    F.scaled_dot_product_attention,
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    _explicit(lambda q: q.size(-1) ** -0.5),
    _explicit(lambda q: 1 / math.sqrt(q.shape[-1])),
    _einsum,
    lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v),
    lambda q, k, v: ((q.transpose(-2, -1) @ k).softmax(-1) @ v.transpose(-2, -1)).transpose(-2, -1),
    lambda q, k, v: F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v),
)


def attention_fused(net, choose, widths, source):
    width, attend, how = widths[source], choose.choice(_ATTENDS), choose.randrange(3)
    heads = _heads_of(choose, width)
    qkv, out = net.keep(nn.Linear(width, 3 * width)), net.keep(nn.Linear(width, width))
    residual = choose.random() < 0.7

    def split(x):
        if how == 0:
            return qkv(x).reshape(-1, LENGTH, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if how == 1:
            return [part.view(-1, LENGTH, heads, width // heads).transpose(1, 2) for part in qkv(x).chunk(3, -1)]
        return qkv(x).view(-1, LENGTH, heads, 3 * width // heads).transpose(1, 2).chunk(3, -1)

    def step(pool, x):
        y = out(attend(*split(x)).transpose(1, 2).reshape(x.shape))
        return x + y if residual else y

    return step, width


def _turned(x):
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


def attention_separate(net, choose, widths, source):
    """Its heads may be normed, turned, weighted by a gate, or mixed; keys and values may be another sequence's."""
    heads, inner = choose.choice((1, 2, 3)), choose.choice((2, 4))
    width, attend, how = widths[source], choose.choice(_ATTENDS[:5]), choose.randrange(6)
    memory = choose.choice([source, choose.randrange(len(widths))])
    q, k, v = (
        net.keep(nn.Linear(widths[i], heads * inner, bias=choose.random() < 0.5)) for i in (source, memory, memory)
    )
    out, norm = net.keep(nn.Linear(heads * inner, width)), net.keep(choose.choice((nn.LayerNorm, nn.RMSNorm))(inner))
    mix, scale, table = net.keep(nn.Linear(heads, heads)), net.weight(heads, 1, 1), net.weight(LENGTH, inner)

    def cut(x):
        return x.view(x.size(0), -1, heads, inner).transpose(1, 2)

    def step(pool, x):
        queries, keys, values = cut(q(x)), cut(k(pool[memory])), cut(v(pool[memory]))
        if how == 1:
            queries, keys = norm(queries), norm(keys)
        if how == 2:
            queries, keys = (part * table().cos() + _turned(part) * table().sin() for part in (queries, keys))
        if how == 3:
            queries = queries * scale()
        y = attend(queries, keys, values)
        if how == 4:
            y = y * scale().sigmoid()
        if how == 5:
            y = mix(y.transpose(1, 3)).transpose(1, 3)
        return x + out(y.transpose(1, 2).flatten(2))

    return step, width


def attention_grouped(net, choose, widths, source):
    """Each key and value head serves two query heads."""
    width, heads, inner, how = widths[source], choose.choice((1, 2)), 3, choose.randrange(4)
    q, out = net.keep(nn.Linear(width, 2 * heads * inner)), net.keep(nn.Linear(2 * heads * inner, width))
    kv = net.keep(nn.Linear(width, 2 * heads * inner))

    def step(pool, x):
        queries = q(x).view(-1, LENGTH, 2 * heads, inner).transpose(1, 2)
        k, v = (part.unflatten(-1, (heads, inner)).transpose(1, 2) for part in kv(x).split(heads * inner, -1))
        if how == 0:
            y = F.scaled_dot_product_attention(queries, k, v, enable_gqa=True)
        elif how == 1:
            y = F.scaled_dot_product_attention(queries, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        else:
            k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in (k, v))
            y = F.scaled_dot_product_attention(queries, k, v) if how == 2 else _explicit(lambda q: 0.7)(queries, k, v)
        return x + out(y.transpose(1, 2).reshape(-1, LENGTH, 2 * heads * inner))

    return step, width


def encoder_layer(net, choose, widths, source):
    width = widths[source]
    layer = net.keep(
        nn.TransformerEncoderLayer(
            width, _heads_of(choose, width), 6, batch_first=True, norm_first=choose.random() < 0.5
        )
    )
    return (lambda pool, x: layer(x)), width


TOKENS = {
    kind.__name__: kind
    for kind in (
        *(linear, activation, mlp, norm, add, concatenate, pieces, position, layer_scale, mixing, gate, swiglu),
        *(convolution, recurrent, shared, inside, normalised, tokens_as_width, by_matrix),
        *(attention_module, attention_fused, attention_separate, attention_grouped, encoder_layer),
    )
}
