"""Signals during training: recorded until the end of the step, or raised at once if nothing would be lost."""

import os
import signal
import threading

import pytest

from finetune.interrupts import SIGNALS, Interrupts


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_step_goes_on(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with Interrupts(alone=True) as interrupts:
        assert not interrupts.received
        send(number)
        assert interrupts.received
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_second_sigint_ends_a_process_that_trains_alone():
    with Interrupts(alone=True):
        send(signal.SIGINT)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    with Interrupts(alone=False) as interrupts:  # a launcher sends the signal a second time
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert interrupts.received


def test_where_nothing_would_be_lost_it_ends_at_once():
    with Interrupts(alone=False) as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():  # the signal came before
            pytest.fail("this is not begun")


def test_an_error_because_another_process_ended_at_the_signal_is_the_signal():
    for alone, expected in ((False, KeyboardInterrupt), (True, RuntimeError)):
        with pytest.raises(expected), Interrupts(alone=alone):
            send(signal.SIGTERM)
            raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError), Interrupts(alone=False):
        raise RuntimeError("Connection closed by peer")


def test_another_thread_cannot_be_told():
    def enter():
        with Interrupts(alone=True) as interrupts:
            received.append(interrupts.received)

    received = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert received == [False]
