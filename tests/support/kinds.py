"""One kind of code in many spellings, each in a small network around it, cut and compared at many sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_oto
from support.exactness import Compressed, compress_half


class Between(nn.Module):
    """Two layers, code, a layer: what the code does not bear is kept whole, and the first layer is cut all the same.

    Args:
        code: of what the second layer gives, which is nowhere zero, and of the input; or of these and the module.
        first, second, last: the layers; the last may be None.
    """

    def __init__(self, code: Callable[..., Tensor], first: nn.Module, second: nn.Module, last: nn.Module | None):
        super().__init__()
        self.first, self.second, self.last, self.code = first, second, last, code
        self.scale = nn.Parameter(torch.randn(1))

    def forward(self, x):
        h = torch.sigmoid(self.second(F.relu(self.first(x))))
        h = self.code(h, x) if self.code.__code__.co_argcount < 3 else self.code(h, x, self)
        return h if self.last is None else self.last(h)


def tokens_around(code: Callable[..., Tensor], width: int = 12, after: int | None = None) -> Between:
    """For inputs of shape ``(batch, length, 4)``; code that sums over the width ends the network."""
    last = None if after == 0 else nn.Linear(after or width, 3)
    return Between(code, nn.Linear(4, 8), nn.Linear(8, width), last)


def images_around(code: Callable[..., Tensor], after: nn.Module) -> Between:
    """For inputs of shape ``(batch, 3, height, width)``; the code sees 12 channels."""
    return Between(code, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), after)


def holds(
    model: nn.Module, example: object, others: Sequence[object] = (), any_size: bool = True, **options: object
) -> Compressed:
    """Exact at every size, or, unless ``any_size``, a check where the size was said to be fixed.

    A batch that is fixed was announced when the model was prepared, with the line of its code.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        found = compress_half(model, example, others=others, any_size=any_size, sensitive=False, **options)
    said = [str(warning.message) for warning in told if issubclass(warning.category, fx_oto.FxOtoWarning)]
    if any(sized.is_batch for sized in found.checked):
        assert any("batch" in text and ".py:" in text for text in said), f"a fixed batch was not announced: {said}"
    return found


def fixed(gm: nn.Module) -> dict[tuple[str, int], str]:
    """Which dimensions of which inputs are fixed, or decided by code, and why."""
    whys = [(size.dims, size.fixed or size.decided) for size in fx_oto.Context.of(gm).capture.sizes]
    return {place: why for dims, why in whys if why for place in dims}
