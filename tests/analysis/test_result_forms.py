"""What is known of results without a run is what torch's kernels for meta tensors return."""

import pytest
import torch

from fx_oto.analysis.result_forms import form_of, forms_of, key_of, tensors_in

aten = torch.ops.aten


def _laid(shape, order, dtype=torch.float32):
    """A tensor whose dimensions lie in memory in an order."""
    tensor = torch.empty([shape[dim] for dim in order], dtype=dtype, device="meta")
    return tensor.permute([order.index(dim) for dim in range(len(shape))])


_IMAGES = [_laid((2, 4, 5, 3), order) for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2))]
_CHANNELS = torch.empty(4, device="meta")
_MATRIX = torch.empty(4, 6, device="meta")
_CALLS = [
    *((aten.native_batch_norm.default, (x, *[_CHANNELS] * 4, True, 0.1, 1e-5)) for x in _IMAGES),
    *((aten.native_layer_norm.default, (x, list(x.shape[2:]), None, None, 1e-5)) for x in _IMAGES),
    *((aten.gelu.default, (x,)) for x in _IMAGES),
    *((aten.mul.Tensor, (_CHANNELS[:, None, None], x)) for x in _IMAGES),
    *((aten.eq.Tensor, (x, _CHANNELS[None, :, None, None].double())) for x in _IMAGES),
    (aten.addmm.default, (torch.empty(6, device="meta"), torch.empty(2, 4, device="meta"), _MATRIX)),
    (aten.addmm.default, (torch.empty(4, device="meta"), torch.empty(2, 6, device="meta"), _MATRIX.t())),
]


@pytest.mark.parametrize("call", _CALLS, ids=lambda call: str(call[0]))
def test_known_forms_are_those_of_torch(call):
    func, args = call
    known = forms_of(key_of(func, args, {}), func, args, {}, tensors_in(args))

    results = func(*args)

    assert known == [form_of(one) for one in tensors_in([results] if isinstance(results, torch.Tensor) else results)]


@pytest.mark.parametrize("other", [torch.empty(3, device="meta"), torch.empty(2, 1, 5, 3, device="meta")])
def test_what_may_not_fit_or_has_an_order_of_its_own_is_asked_of_torch(other):
    args = (_IMAGES[1], other)
    expected = [] if other.ndim > 1 else [form_of(_IMAGES[1])]

    assert forms_of(key_of(aten.add.Tensor, args, {}), aten.add.Tensor, args, {}, tensors_in(args)) == expected


def test_the_default_type_decides_what_integers_are_divided_to():
    args = (torch.ones(3, dtype=torch.int64, device="meta"), 2)
    before = torch.get_default_dtype()
    found = []
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            found += forms_of(key_of(aten.div.Tensor, args, {}), aten.div.Tensor, args, {}, tensors_in(args))
    finally:
        torch.set_default_dtype(before)

    assert [dtype for *_, dtype in found] == [torch.float32, torch.float64]
