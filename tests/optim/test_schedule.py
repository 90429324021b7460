"""The window and its periods, compared with what their definitions say of every single step."""

from __future__ import annotations

import math

import pytest

import fx_oto
from fx_oto.optim.schedule import Period, Schedule

WINDOWS = [(0, 1, 1), (0, 10, 3), (7, 50, 1), (7, 50, 10), (3, 10, 7), (100, 117, 5)]


@pytest.mark.parametrize(
    ("total", "start", "end", "end_at", "window"),
    [
        (100, None, None, 0.6, (10, 60)),
        (100, None, None, 0.25, (10, 25)),
        (100, 55, None, 0.6, (55, 80)),  # five ninths of the 45 steps that are left, as of the 90 at the default
        (3, None, None, 0.6, (0, 1)),
        (1, None, None, 0.25, (0, 1)),  # one step at least
        (100, None, 30, 0.6, (10, 30)),
        (100, 99, 100, 0.6, (99, 100)),
        (None, None, 7, 0.6, (0, 7)),
        (None, 2, 7, 0.6, (2, 7)),
    ],
)
def test_what_is_not_given_follows_from_the_rest(total, start, end, end_at, window):
    found = Schedule.of(total, start, end, 1, end_at)
    assert (found.start, found.end) == window


def test_there_are_no_more_periods_than_steps():
    assert Schedule.of(None, 2, 7, 10, 0.6).periods == 5
    assert Schedule.of(None, 2, 7, 5, 0.6).periods == 5
    assert Schedule.of(None, 2, 7, 4, 0.6).periods == 4
    assert Schedule.of(None, 2, 7, 1, 0.6).periods == 1


@pytest.mark.parametrize("window", [(-1, 5), (5, 5), (6, 5), (2, 21)])
def test_windows_that_cannot_be(window):
    with pytest.raises(fx_oto.SettingsError, match=r"0 <= start_step < end_step <= total_steps"):
        Schedule.of(20, *window, 1, 0.6)


@pytest.mark.parametrize("name", ["total_steps", "start_step", "end_step", "periods"])
@pytest.mark.parametrize("value", [True, 2.0])
def test_steps_are_whole_numbers(name, value):
    given = {"total_steps": 20, "start_step": 1, "end_step": 9, "periods": 1, name: value}
    with pytest.raises(fx_oto.SettingsError, match=f"{name} must be a whole number of steps"):
        Schedule.of(*given.values(), 0.6)


@pytest.mark.parametrize("window", WINDOWS)
def test_periods_divide_the_window_evenly(window):
    start, end, count = window
    schedule = Schedule(*window)
    found = [schedule.period(step) for step in range(start, end)]
    periods = list(dict.fromkeys(found))
    assert len(periods) == count
    assert [schedule.period(step) for step in (start - 1, end)] == [None, None]
    assert all(period.start <= step < period.end for step, period in enumerate(found, start))
    assert [period.start for period in periods] == [start, *(period.end for period in periods[:-1])]
    assert periods[-1].end == end
    lengths = [period.end - period.start for period in periods]
    assert max(lengths) - min(lengths) <= 1
    assert [period.done for period in periods] == [(i + 1) / count for i in range(count)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("batches", [1, 2, 5, 40])
def test_gradients_are_observed_up_to_the_first_step_of_each_period(window, batches):
    schedule = Schedule(*window)
    starts = {schedule.period(step).start for step in range(schedule.start, schedule.end)}
    expected = {step for first in starts for step in range(first - batches + 1, first + 1)}
    assert {step for step in range(-50, schedule.end + 50) if schedule.observes(step, batches)} == expected


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_fading_over_several_steps_is_the_product_of_each(start, length):
    period = Period(5, 5 + length, 1.0)

    def factor(step):
        return (period.end - step - 1) / (period.end - step) if step >= 5 + start * length else 1.0

    for step in range(period.start, period.end):
        for steps in range(1, step - period.start + 2):
            expected = math.prod(factor(taken) for taken in range(step - steps + 1, step + 1))
            assert period.fade(step, steps, start) == pytest.approx(expected, abs=1e-12)


def test_it_fades_in_the_second_half_one_step_at_a_time_unless_told_otherwise():
    period = Period(0, 10, 1.0)
    assert [period.fade(step) for step in (3, 4, 5, 8, 9)] == [1.0, 1.0, 4 / 5, 1 / 2, 0.0]
