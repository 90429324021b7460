"""torchvision's operators on regions and at computed places; where it has none compiled, stand-ins of their form.

The stand-ins do what counts here: each channel by itself, at places that other inputs say, and zeros stay zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(x, boxes, scale, height, width, samples, aligned):
    """Each box by the values in the middle of its cells."""
    image, (left, top, right, bottom) = boxes[:, 0].long(), (boxes[:, 1:] * scale).unbind(1)
    steps = [(torch.arange(n, dtype=x.dtype) + 0.5) / n for n in (height, width)]
    ys = top[:, None] + (bottom - top)[:, None] * steps[0]
    xs = left[:, None] + (right - left)[:, None] * steps[1]
    along_y, along_x = (2 * at / size - 1 for at, size in ((ys, x.size(2)), (xs, x.size(3))))
    shape = (len(boxes), height, width)
    grid = torch.stack([along_x[:, None, :].expand(shape), along_y[:, :, None].expand(shape)], -1)
    return F.grid_sample(x[image], grid, align_corners=False)


def roi_pool(x, boxes, scale, height, width):
    """The largest of each cell, and where that is."""
    found = roi_align(x, boxes, scale, 2 * height, 2 * width, 0, False)
    return F.max_pool2d(found, 2, return_indices=True)


def deform_conv2d(x, weight, offset, mask, bias, *numbers):
    """A convolution that offsets and masks scale."""
    *numbers, groups, _, use_mask = numbers
    stride, padding, dilation = (numbers[i : i + 2] for i in (0, 2, 4))
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups) * offset.sin().mean(1, keepdim=True)
    return (y * mask.mean(1, keepdim=True) if use_mask else y) + bias[:, None, None]


_NUMBERS = "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w"
_BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_OPS = {
    roi_align: f"({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    roi_pool: f"({_BOXES}) -> (Tensor, Tensor)",
    deform_conv2d: f"(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {_NUMBERS}, int groups, "
    "int offset_groups, bool use_mask) -> Tensor",
}


def _cells(x, boxes, scale, height, width, *_):
    return x.new_empty(len(boxes), x.size(1), height, width)


_FORMS = {
    roi_align: _cells,
    roi_pool: lambda *given: (_cells(*given), _cells(*given).long()),
    deform_conv2d: lambda x, weight, offset, *_: x.new_empty(len(x), len(weight), *offset.shape[2:]),
}


def define() -> None:
    """Let ``torch.ops.torchvision`` have these operators."""
    for function, schema in _OPS.items():
        if not hasattr(torch.ops.torchvision, function.__name__):
            name = f"torchvision::{function.__name__}"
            made = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
            made.register_fake(_FORMS[function])
            made.register_autograd(_backward(function), setup_context=_remember)


def _remember(ctx, inputs, output):
    ctx.given = inputs


def _backward(function):
    def backward(ctx, *gradients):
        given = [
            one.detach().requires_grad_(one.is_floating_point()) if isinstance(one, Tensor) else one
            for one in ctx.given
        ]
        with torch.enable_grad():
            found = function(*given)
        first = found if isinstance(found, Tensor) else found[0]
        learned = [one for one in given if isinstance(one, Tensor) and one.requires_grad]
        found = iter(torch.autograd.grad(first, learned, gradients[0], allow_unused=True))
        return tuple(next(found) if isinstance(one, Tensor) and one.requires_grad else None for one in given)

    return backward
