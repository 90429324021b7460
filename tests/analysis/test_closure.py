"""Choices among the axes of grids, on grids small enough to say by hand which classes are right."""

from __future__ import annotations

import pytest
import torch

from fx_oto.analysis.atoms import Atoms
from fx_oto.analysis.closure import Crossing, Grouped, Rectangle, settle
from fx_oto.analysis.dependencies import Reason

WHY, BEFORE = Reason("it meets the grid"), Reason("it was kept whole before")


class Settled:
    """Atoms, what is asked of them, and what has become of them."""

    def __init__(self):
        self.atoms, self.frozen = Atoms(), []

    def grid(self, *shape):
        return self.atoms.fresh(torch.Size(shape).numel()).view(shape)

    def freeze(self, labels):
        self.frozen.append((labels.reshape(-1), BEFORE))

    def settle(self, *obligations):
        settle(self.atoms, obligations, self.frozen)
        return self

    def classes(self, labels):
        """A letter for each label, in order of their first places: the same for one class, "-" for what is frozen."""
        dead = torch.cat([self.atoms.find(labels) for labels, _ in self.frozen] or [torch.zeros(0)])
        names = {}
        rows = self.atoms.find(labels.view(-1, labels.shape[-1])).tolist()
        letters = [
            ["-" if root in dead else names.setdefault(root, chr(97 + len(names))) for root in row] for row in rows
        ]
        return " ".join(map("".join, letters))

    def reasons(self, labels):
        return {reason for kept, reason in self.frozen if torch.isin(kept, labels).any()}


@pytest.fixture
def s():
    return Settled()


def test_without_choices_nothing_changes(s):
    line = s.grid(3)
    s.atoms.unite(line[0], line[2])
    assert s.settle().classes(line) == "aba"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 4), "abcd abcd"), ((4, 2), "aa bb cc dd"), ((3, 3), "abc abc abc"), ((1, 3), "abc"), ((3, 1), "a b c")],
)
def test_of_a_grid_the_axis_survives_that_leaves_more_units_and_of_equals_the_last(s, shape, expected):
    grid = s.grid(*shape)
    assert s.settle(Rectangle(grid)).classes(grid) == expected


def test_what_is_frozen_counts_as_nothing_left(s):
    """Of (3, 4) with the first row kept whole, columns would leave none, rows leave two."""
    grid = s.grid(3, 4)
    s.freeze(grid[0])
    assert s.settle(Rectangle(grid)).classes(grid) == "---- aaaa bbbb"


def test_what_is_united_already_counts_once(s):
    """Columns of (3, 4) are two units, for they are coupled in pairs; rows are three."""
    grid = s.grid(3, 4)
    s.atoms.unite(grid[:, ::2], grid[:, 1::2])
    assert s.settle(Rectangle(grid)).classes(grid) == "aaaa bbbb cccc"


def test_a_grid_that_varies_along_one_axis_only_is_let_be(s):
    grid = s.grid(2, 3)
    s.atoms.unite(grid, grid[:, :1])
    assert s.settle(Rectangle(grid)).classes(grid) == "aaa bbb"


def test_of_three_axes_one_survives(s):
    grid = s.grid(2, 4, 3)
    s.settle(Rectangle(grid))
    assert s.classes(grid.reshape(2, 12)) == "aaabbbcccddd aaabbbcccddd"


def test_something_is_left_of_every_part(s):
    """Five parts of (2, 3) in one projection: the parts themselves would be most, but then one of them could go."""
    grid = s.grid(5, 2, 3)
    s.settle(Rectangle(grid), *(Rectangle(part) for part in grid))
    assert s.classes(grid.view(5, 6)) == " ".join(["abcabc"] * 5)


def test_parts_that_go_as_one_already_ask_for_nothing(s):
    grid = s.grid(5, 2, 3)
    for part in grid:
        s.atoms.unite(part, part[:1, :1])
    s.settle(Rectangle(grid), *(Rectangle(part) for part in grid))
    assert s.classes(grid.view(5, 6)) == "aaaaaa bbbbbb cccccc dddddd eeeeee"


def test_a_part_that_goes_as_one_does_not_excuse_the_others(s):
    """Rows alone leave something of every part; the first row of the first part is a single unit before."""
    grid = s.grid(5, 2, 3)
    line = grid[0, :1]
    s.atoms.unite(line, line[:, :1])
    s.settle(Rectangle(grid), *(Rectangle(part) for part in grid), Rectangle(line))
    assert s.classes(grid.view(5, 6)) == " ".join(["aaabbb"] * 5)


def test_a_single_label_is_no_part(s):
    grid = s.grid(5, 2, 3)
    s.settle(Rectangle(grid), Rectangle(grid[0, :1, :1]))
    assert s.classes(grid.view(5, 6)) == "aaaaaa bbbbbb cccccc dddddd eeeeee"


def test_a_grid_that_holds_other_labels_as_well_is_no_part(s):
    grid, other = s.grid(5, 2, 3), s.grid(2, 2)
    s.settle(Rectangle(grid), Rectangle(other), Rectangle(torch.cat([grid[0, :, :2], other])))
    assert s.classes(grid.view(5, 6)) == "aaaaaa bbbbbb cccccc dddddd eeeeee"


def test_a_choice_on_one_grid_is_seen_by_the_next(s):
    """(2, 6) leaves its 6 columns; the same labels as (4, 3) then have 3 columns and 2 different rows."""
    line = s.grid(12)
    s.settle(Rectangle(line.view(2, 6)), Rectangle(line.view(4, 3)))
    assert s.classes(line) == "abc" * 4


def test_a_choice_on_a_grid_goes_back_to_one_that_was_settled(s):
    """The first grid has 4 columns; then the third ties them to what the second has coupled in pairs."""
    grid, other = s.grid(2, 4), s.grid(2, 4)
    s.settle(Rectangle(grid), Rectangle(other.view(4, 2)), Rectangle(torch.stack([grid[0], other[0]])))
    assert s.classes(torch.cat([grid, other])) == "aabb aabb aabb ccdd"


@pytest.mark.parametrize("thin", [(1, 4), (2, 1)])
def test_what_varies_along_the_surviving_axis_goes_with_it(s, thin):
    """A bias for the widths of heads goes with the widths; one for the heads is kept whole, for no head goes."""
    grid, line = s.grid(2, 4), s.grid(*thin)
    s.settle(Crossing(grid, line, WHY))
    assert s.classes(grid) == "abcd abcd"
    if thin == (1, 4):
        assert s.classes(torch.cat([grid, line])) == "abcd abcd abcd"
        assert not s.frozen
    else:
        assert s.classes(line) == "- -"
        assert s.reasons(line) == {WHY}


def test_of_a_line_what_is_kept_whole_keeps_its_column(s):
    grid, line = s.grid(2, 4), s.grid(1, 4)
    s.freeze(line[:, 1])
    s.settle(Crossing(grid, line, WHY))
    assert s.classes(torch.cat([grid, line])) == "a-bc a-bc a-bc"
    assert s.reasons(grid) == {WHY}


def test_of_a_grid_what_is_kept_whole_keeps_its_place_in_the_line(s):
    """Column 1 has a frozen place: of the columns that leaves three, of the rows one."""
    grid, line = s.grid(2, 4), s.grid(1, 4)
    s.freeze(grid[1, 1])
    s.settle(Crossing(grid, line, WHY))
    assert s.classes(torch.cat([grid, line])) == "a-bc a-bc a-bc"
    assert s.reasons(line) == {WHY}


def test_a_grid_that_only_goes_as_one_takes_the_line_with_it(s):
    grid, line = s.grid(2, 4), s.grid(1, 4)
    s.atoms.unite(grid, grid[:1, :1])
    s.settle(Crossing(grid, line, WHY))
    assert s.classes(torch.cat([grid, line])) == "aaaa aaaa aaaa"


def test_a_line_that_is_kept_whole_keeps_all_columns_and_rows_go(s):
    grid, line = s.grid(2, 4), s.grid(1, 4)
    s.freeze(line)
    s.settle(Crossing(grid, line, WHY))
    assert s.classes(grid) == "aaaa bbbb"
    assert not s.reasons(grid)


def test_a_line_that_is_kept_whole_leaves_the_other_axis_alone(s):
    grid, line = s.grid(2, 4), s.grid(2, 1)
    s.freeze(line)
    s.settle(Crossing(grid, line, WHY))
    assert s.reasons(line) == {BEFORE}


def test_a_line_that_goes_with_the_grid_already_asks_for_nothing(s):
    grid, line = s.grid(2, 4), s.grid(1, 4)
    s.atoms.unite(grid, line)
    assert s.settle(Crossing(grid, line, WHY)).classes(torch.cat([grid, line])) == "abcd abcd abcd"


def grouped(s, inputs, outputs, shared=None, by_inputs=True):
    return Grouped(s.grid(*inputs) if inputs else None, s.grid(*outputs), shared, by_inputs, WHY)


def test_groups_of_several_channels_lose_the_same_positions(s):
    """12 outputs and 6 inputs in 3 groups: 3 groups, or 4 and 2 positions."""
    shared = s.grid(2)
    conv = grouped(s, (3, 2), (3, 4), shared)
    s.settle(conv)
    assert s.classes(conv.outputs) == "abcd abcd abcd"
    assert s.classes(torch.cat([conv.inputs, shared.view(1, 2)])) == "ab ab ab ab"
    assert not s.frozen


def test_of_a_transposed_convolution_the_shared_axis_goes_with_the_outputs(s):
    shared = s.grid(4)
    conv = grouped(s, (3, 2), (3, 4), shared, by_inputs=False)
    s.settle(conv)
    assert s.classes(torch.cat([conv.outputs, shared.view(1, 4)])) == "abcd abcd abcd abcd"
    assert s.classes(conv.inputs) == "ab ab ab"


def test_a_depthwise_convolution_loses_channels(s):
    conv = grouped(s, (5, 1), (5, 1))
    s.settle(conv)
    assert s.classes(torch.cat([conv.inputs.T, conv.outputs.T])) == "abcde abcde"


def test_where_whole_groups_go_the_shared_axis_is_kept(s):
    """8 groups of 2 inputs and an output each: more than the 2 + 1 positions."""
    shared = s.grid(2)
    conv = grouped(s, (8, 2), (8, 1), shared)
    s.settle(conv)
    assert s.classes(torch.cat([conv.inputs, conv.outputs], 1)) == "aaa bbb ccc ddd eee fff ggg hhh"
    assert s.classes(shared) == "--"
    assert s.reasons(shared) == {WHY}


def test_what_whole_groups_keep_whole_counts_as_nothing_left(s):
    """The axis that 8 groups share is a row of a grid, too: of its columns that leaves none, of its rows the other."""
    shared = s.grid(2)
    grid = torch.stack([shared, s.grid(2)])
    s.settle(grouped(s, (8, 2), (8, 1), shared), Rectangle(grid))
    assert s.classes(grid) == "-- aa"


def test_positions_along_a_shared_axis_that_is_kept_whole_count_as_nothing_left(s):
    """3 groups, and 2 + 2 positions of which those of the inputs stay with the axis, so 2: groups go."""
    shared = s.grid(2)
    s.freeze(shared)
    conv = grouped(s, (3, 2), (3, 2), shared)
    s.settle(conv)
    assert s.classes(torch.cat([conv.inputs, conv.outputs], 1)) == "aaaa bbbb cccc"


def test_of_as_many_groups_as_positions_positions_go(s):
    """4 groups of 2 inputs and 2 outputs: 4 groups, 2 + 2 positions."""
    conv = grouped(s, (4, 2), (4, 2))
    s.settle(conv)
    assert s.classes(conv.outputs) == "ab ab ab ab"


def test_positions_that_others_have_united_count_once(s):
    """4 groups, and 2 + 2 positions of which those of the inputs are coupled, so 1 + 2: groups go."""
    conv = grouped(s, (4, 2), (4, 2))
    s.atoms.unite(conv.inputs[:, 0], conv.inputs[:, 1])
    s.settle(conv)
    assert s.classes(conv.outputs) == "aa bb cc dd"


def test_untracked_inputs_leave_the_positions_of_the_outputs(s):
    conv = grouped(s, None, (6, 1), s.grid(2))
    s.settle(conv)
    assert s.classes(conv.outputs) == "a a a a a a"
    assert s.classes(conv.shared) == "ab"


def test_groups_are_chosen_before_rectangles_wherever_they_stand(s):
    """The 12 channels as (4, 3) would lose rows, which leaves the convolution in 2 groups no more than 2 positions."""
    conv = grouped(s, (2, 6), (2, 1))
    s.settle(Rectangle(conv.inputs.view(4, 3)), conv)
    assert s.classes(conv.inputs.view(4, 3)) == "abc abc abc abc"


@pytest.mark.parametrize(("turned", "expected"), [(False, "abababababab"), (True, "aabbccaabbcc")])
def test_of_groups_in_a_row_the_first_chooses_first(s, turned, expected):
    """In 2 groups 12 channels lose positions, in 6 they lose groups: the second has to agree with the first."""
    channels = s.grid(12)
    convs = [Grouped(channels.view(groups, -1), s.grid(groups, 1), None, True, WHY) for groups in (2, 6)]
    s.settle(*(reversed(convs) if turned else convs))
    assert s.classes(channels) == expected
