"""Random blocks that use the sizes of what they are given, or another code in training: for images and for tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LONGEST = 64  # more positions than any length that is tried


def _numbers(choose):
    """A number made of the sizes of a tensor, of (batch, ...)."""
    return choose.choice(
        (
            lambda x: x.shape[1] ** -0.5,
            lambda x: 1 / x.shape[-2],
            lambda x: x.shape[0],
            lambda x: (x.shape[0] * x.shape[-2]) ** 0.5 / 3,
            lambda x: x.shape[-2] // 2 + 1,
            lambda x: x.shape[-2] / (x.shape[0] + 1),
            lambda x: 1 + x.shape[-2] % 3,
            lambda x: x[0].numel() / x[0].shape[-2] / 10,
            lambda x: 0.5 * int(x.shape[0] / 2 + 1),
            lambda x: sum(x.shape) / x.numel(),
        )
    )


def scaled(net, choose, widths, source):
    number, how = _numbers(choose), choose.randrange(6)

    def step(pool, x):
        n = number(x)
        if how == 0:
            return x * n
        if how == 1:
            return x + n
        if how == 2:
            return n - x
        if how == 3:
            return F.softplus(x, beta=n)
        if how == 4:
            return x.clone().div_(n + 1).add_(n)
        return torch.sigmoid(x) * torch.full((1,), n, dtype=x.dtype)

    return step, widths[source]


def meant(net, choose, widths, source):
    """A mean over what is neither the batch nor the channels, spelled by its size."""
    centre = choose.random() < 0.5

    def step(pool, x):
        dims = (1,) if x.ndim == 3 else (2, 3)
        count = x.shape[1] if x.ndim == 3 else x.shape[2] * x.shape[3]
        mean = x.sum(dims, keepdim=True) / count
        return x - mean if centre else x * mean

    return step, widths[source]


def _channels(x):
    return -1 if x.ndim == 3 else 1


def moved(net, choose, widths, source):
    """Channels rolled, cut and joined where a size says."""
    how, of_batch = choose.randrange(6), choose.random() < 0.3

    def step(pool, x):
        dim = _channels(x)
        width = x.shape[dim]
        size = x.shape[0] if of_batch else x.shape[-2] if x.ndim == 4 else x.shape[1]
        if how == 0:
            return torch.roll(x, size, dim)
        if how == 1:
            return torch.cat(x.split([min(size, width), width - min(size, width)], dim)[::-1], dim)
        if how == 2:
            return torch.cat(x.chunk(max(size, 1), dim)[::-1], dim)
        if how == 3:
            return x.index_select(dim, (torch.arange(width) + size) % width)
        if how == 4:
            return x * x.narrow(dim, 0, min(size, width)).sum(dim, keepdim=True)
        return torch.cat(x.tensor_split((size % width,), dim)[::-1], dim)

    return step, widths[source]


def written(net, choose, widths, source):
    """Written into, at places that sizes give."""
    how = choose.randrange(6)

    def step(pool, x):
        y = x.clone()
        channels = y.movedim(_channels(y), 0)
        rows = y.transpose(0, 1) if y.ndim == 3 else y.movedim(2, 0)
        if how == 0:
            channels[: x.shape[1] // 2] *= 2
        elif how == 1:
            rows[: len(rows) // 2] = 0
        elif how == 2:
            y[: x.shape[0] // 2].mul_(3)
        elif how == 3:
            rows[x.shape[1] % 2 :] += 1 / x.shape[0]
        elif how == 4:
            channels[x.shape[0] :].zero_()
        else:
            y[x.shape[0] - 1] = y[0] * 2
        return y

    return step, widths[source]


def counted(net, choose, widths, source):
    """Merged with the batch, which an int of a quotient takes apart again."""
    how = choose.randrange(4)
    layer = net.keep(nn.Linear(widths[source], widths[source]))

    def step(pool, x):
        last = x if x.ndim == 3 else x.permute(0, 2, 3, 1)
        flat = layer(last.reshape(-1, last.shape[-1]))
        places = last.shape[1:-1].numel()
        batch = (
            *(int(flat.shape[0] / places), flat.shape[0] // places),
            *(round(flat.shape[0] / places), int(flat.shape[0] * (1 / places) + 0.5)),
        )[how]
        found = flat.view(batch, *last.shape[1:])
        return found if x.ndim == 3 else found.permute(0, 3, 1, 2)

    return step, widths[source]


def stepwise(net, choose, widths, source):
    """A loop over the length or the rows, each with what the one before gave."""
    how, layer = choose.randrange(4), net.keep(nn.Linear(widths[source], widths[source]))

    def step(pool, x):
        rows = x if x.ndim == 3 else x.mean(3).transpose(1, 2)
        h, found = 0, []
        loop = (
            *(lambda: (rows[:, t] for t in range(rows.shape[1])), lambda: rows.unbind(1)),
            *(lambda: (part[:, 0] for part in rows.split(1, 1)), lambda: rows.transpose(0, 1)),
        )[how]
        for row in loop():
            h = torch.tanh(layer(row) + h)
            found.append(h)
        found = torch.stack(found, 1)
        return found if x.ndim == 3 else x + found.transpose(1, 2)[..., None]

    return step, widths[source]


def exampled(net, choose, widths, source):
    """A loop over the batch."""
    how = choose.randrange(3)

    def step(pool, x):
        if how == 0:
            return torch.stack([x[i] * (i + 1) for i in range(x.shape[0])])
        return torch.cat([row * 2 for row in (x.split(1) if how == 1 else x.chunk(x.shape[0]))])

    return step, widths[source]


def trained(net, choose, widths, source):
    """Other code in training, without random numbers."""
    width, how = widths[source], choose.randrange(6)
    layer, norm = net.keep(nn.Linear(width, width)), net.keep(nn.BatchNorm1d(width))

    def linear(x):
        return layer(x) if x.ndim == 3 else layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def normed(x):
        return norm(x.transpose(1, 2)).transpose(1, 2) if x.ndim == 3 else norm(x.flatten(2)).view(x.shape)

    def step(pool, x):
        if how == 0:
            return x + linear(x) if net.training else x
        if how == 1:
            return x * 2 if net.training else torch.tanh(x)
        if how == 2:
            return normed(x) if net.training else x * norm.weight.mean()
        if how == 3:
            return linear(normed(x)) if net.training else normed(linear(x))
        if how == 4:
            return x / x.shape[0] if net.training else linear(x)
        weight, bias = norm.weight, norm.bias
        shape = (1, 1, -1) if x.ndim == 3 else (1, -1, 1, 1)
        return x * weight.view(shape) + (bias.view(shape) if net.training else 0)

    return step, width


def resized(net, choose, widths, source):
    """Padded to an even length or size, halved, and brought back to the size that it had."""
    how = choose.randrange(3)

    def step(pool, x):
        if x.ndim == 3:
            length = x.shape[1]
            pairs = F.pad(x, (0, 0, 0, length % 2)).unflatten(1, (-1, 2))
            return (pairs.mean(2) if how else pairs[:, :, 0]).repeat_interleave(2, 1)[:, :length]
        height, width = x.shape[2:]
        x = F.pad(x, (0, width % 2, 0, height % 2))
        if how == 0:
            return F.interpolate(F.max_pool2d(x, 2), size=(height, width))
        if how == 1:
            return F.interpolate(x[:, :, ::2, ::2], scale_factor=2)[:, :, :height, :width]
        return F.adaptive_avg_pool2d(x, (height, width))

    return step, widths[source]


SIZED = {kind.__name__: kind for kind in (scaled, meant, moved, written, counted, stepwise, exampled, trained, resized)}


def placed(net, choose, widths, source):
    """As many positions of a table as there are tokens."""
    table, how = net.weight(1, LONGEST, widths[source]), choose.randrange(3)

    def step(pool, x):
        if how == 0:
            return x + table()[:, : x.shape[1]]
        if how == 1:
            return x * table().narrow(1, 0, x.size(1))
        return x + table()[0, torch.arange(x.shape[1])]

    return step, widths[source]


def causal(net, choose, widths, source):
    width = widths[source]
    layer = net.keep(nn.Conv1d(width, width, 3, padding=2, groups=choose.choice((1, width))))
    return (lambda pool, x: layer(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)), width


def attending(net, choose, widths, source):
    """Attention as most write it: every size is read from the tensor."""
    width, how = widths[source], choose.randrange(4)
    heads = choose.choice([heads for heads in (1, 2, 4) if width % heads == 0])
    qkv, out = net.keep(nn.Linear(width, 3 * width)), net.keep(nn.Linear(width, width))

    def step(pool, x):
        b, t, c = x.shape
        q, k, v = qkv(x).reshape(b, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        if how == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif how == 1:
            y = (q @ k.mT / t**0.5).softmax(-1) @ v
        elif how == 2:
            hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = (q @ k.mT * (c // heads) ** -0.5).masked_fill(hidden, float("-inf")).softmax(-1) @ v
        else:
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            y = (torch.bmm(q, k.mT) / t).softmax(-1) @ v
            y = y.view(b, -1, t, c // heads)
        return x + out(y.transpose(1, 2).reshape(b, t, c))

    return step, width


SIZED_TOKENS = {**SIZED, **{kind.__name__: kind for kind in (placed, causal, attending)}}

# What is written for any size, of the other blocks.
FREE_IMAGES = (
    *("convolution", "grouped", "transposed", "norm", "channels_last_norm", "activation", "add", "concatenate"),
    *("halves", "strided", "shuffle", "gate", "scale", "shared", "channel_mean", "channels_last_mlp", "selective"),
    *("repeated", "statistics", "glu", "pieces", "separable", "where_to_look", *SIZED),
)
FREE_TOKENS = (
    *("linear", "activation", "mlp", "norm", "add", "concatenate", "pieces", "layer_scale", "gate", "swiglu"),
    *("recurrent", "shared", "normalised", "by_matrix", "attention_module", "attention_separate", "encoder_layer"),
    *SIZED_TOKENS,
)
