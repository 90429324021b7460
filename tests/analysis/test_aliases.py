"""Where views lie in what they are views of, compared with the elements that they take."""

from __future__ import annotations

import pytest
import torch

from fx_oto.analysis.aliases import meet, part_of

WHOLE = torch.arange(4 * 12 * 5).view(4, 12, 5)

VIEWS = {
    "all": lambda x: x[:],
    "slice": lambda x: x[:, 4:],
    "steps": lambda x: x[:, 1::3, ::2],
    "select": lambda x: x[:, 7],
    "select in front": lambda x: x[2],
    "element": lambda x: x[2, 3, 4],
    "transposed": lambda x: x.permute(2, 0, 1)[1:, :, 2:9:2],
    "new dimension": lambda x: x[:, None, 3:],
    "within a slice": lambda x: x[:, 2:10][:, 1:6:2],
    "one of a kind": lambda x: x[3:, 11:, 4:],
    "squeezed": lambda x: x[1:2].squeeze(0),
    "a part that is merged": lambda x: x[:, 4:8].unflatten(1, (2, 2))[:, 1],
}


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.transpose(1, 2)], ids=["in order", "transposed"])
@pytest.mark.parametrize("name", VIEWS)
def test_parts_take_the_elements_of_the_view(name, layout):
    whole = layout(WHOLE)
    view = VIEWS[name](WHOLE)
    parts = part_of(view, whole)
    assert parts is not None
    taken = whole[torch.meshgrid([torch.tensor(list(part.places)) for part in parts], indexing="ij")]
    assert taken.flatten().sort().values.tolist() == view.flatten().sort().values.tolist()
    for part, size in zip(parts, taken.shape, strict=True):
        assert size == part.count == (1 if part.dim is None else view.size(part.dim))


NO_PARTS = {
    "dimensions merged": lambda x: x.view(4, 60),
    "dimensions split": lambda x: x.view(4, 3, 4, 5),
    "diagonal": lambda x: x.diagonal(0, 0, 1),
    "windows that overlap": lambda x: x.unfold(1, 3, 1),
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1),
    "nothing": lambda x: x[:, :0],
    "as another type": lambda x: x.view(torch.float64),
    "across the end of a row": lambda x: x.as_strided((3, 6), (60, 5), 40),
}


@pytest.mark.parametrize("name", NO_PARTS)
def test_what_is_no_part_of_each_dimension(name):
    assert part_of(NO_PARTS[name](WHOLE), WHOLE) is None


def test_a_whole_is_no_part_of_its_view():
    assert part_of(WHOLE, WHOLE[:, 2:]) is None
    assert part_of(WHOLE, WHOLE[:, :1].expand(-1, 3, -1)) is None


def test_what_meets():
    even, odd, late, row = (part_of(one, WHOLE) for one in (WHOLE[:, ::2], WHOLE[:, 1::2], WHOLE[:, 9:], WHOLE[1:]))
    assert not meet(even, odd)
    assert meet(even, late)
    assert meet(late, odd)
    assert meet(row, even)
    assert not meet(part_of(WHOLE[0], WHOLE), row)
