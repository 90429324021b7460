"""Ctrl-C is answered at the end of a block that must not be left in its midst."""

import signal
import threading

import pytest

from fx_oto.core.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def answered(work):
    """Whether it is after the work, and the handler as before."""
    try:
        with interrupts_held():
            work()
    except KeyboardInterrupt:
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return False


def test_it_is_answered_at_the_end():
    def work():
        press()
        with interrupts_held():
            done.append(1)
        done.append(2)

    done = []
    assert answered(work)
    assert done == [1, 2]


def test_also_where_the_block_fails():
    def work():
        press()
        raise ValueError

    assert answered(work)


def test_a_second_one_is_answered_at_once():
    def work():
        press()
        press()
        done.append(1)

    done = []
    assert answered(work)
    assert not done


def test_who_handles_it_otherwise_is_asked_once():
    pressed = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    with interrupts_held():
        press()
        assert not pressed
    assert pressed == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_are_never_interrupted():
    def work():
        with interrupts_held():
            found.append(signal.getsignal(signal.SIGINT))

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
