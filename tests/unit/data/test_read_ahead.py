"""Samples that are read ahead: in order, within bounds, and with the errors of the thread where they can be handled."""

import threading
import time

import pytest
import torch

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.prepared import Fault
from lightning_mmrl.data.read_ahead import ReadAhead
from lightning_mmrl.data.sampler import Draw
from lightning_mmrl.types.records import Sample

PATIENCE_S = 20


def draws(*numbers):
    return [Draw(index=number, serial=number) for number in numbers]


def encoded(number, num_bytes=8):
    sample = Sample(id=str(number), messages=(), solution=None)
    return EncodedSample(sample=sample, prompt={"input_ids": torch.zeros(num_bytes, dtype=torch.uint8)})


class Reading:
    """Remembers what it read; waits at a gate before each call if there is one."""

    def __init__(self, gate=None, num_bytes=8, failing=None):
        self.read, self._gate, self._num_bytes, self._failing = [], gate, num_bytes, failing
        self.called = threading.Condition()

    def __call__(self, wanted):
        if self._gate is not None:
            assert self._gate.wait(PATIENCE_S)
        if self._failing is not None:
            raise self._failing
        found = [encoded(draw.index, self._num_bytes) for draw in wanted]
        with self.called:
            self.read += [draw.index for draw in wanted]
            self.called.notify_all()
        return found

    def wait_for(self, number):
        with self.called:
            assert self.called.wait_for(lambda: len(self.read) >= number, PATIENCE_S)


def ahead(reading, most_samples=100, most_bytes=10**6, together=1, end=lambda: None):
    return ReadAhead(reading, end, most_samples=most_samples, most_bytes=most_bytes, together=together)


def names(found):
    return [each.sample.id for each in found]


def test_wanted_samples_are_read_in_order_before_they_are_taken():
    reading = Reading()
    with ahead(reading, together=2) as reader:
        reader.want(draws(3, 1, 2))
        reading.wait_for(3)
        assert reading.read == [3, 1, 2]
        assert names(reader.take(draws(3, 1))) == ["3", "1"]
        assert names(reader.take(draws(2))) == ["2"]
        assert reading.read == [3, 1, 2]


@pytest.mark.parametrize(("how", "num"), [({"most_samples": 3}, 3), ({"most_bytes": 17}, 3), ({"most_bytes": 1}, 1)])
def test_no_more_is_read_than_the_bounds_allow_until_something_is_taken(how, num):
    reading = Reading()
    with ahead(reading, **how) as reader:
        reader.want(draws(*range(10)))
        reading.wait_for(num)
        time.sleep(0.05)
        assert reading.read == list(range(num))
        reader.take(draws(0))
        reading.wait_for(num + 1)
        time.sleep(0.05)
        assert reading.read == list(range(num + 1))


@pytest.mark.parametrize("how", [{"most_samples": 1}, {"most_bytes": 1}])
def test_a_batch_beyond_the_bounds_is_read_all_the_same(how):
    with ahead(Reading(), **how) as reader:
        assert names(reader.take(draws(*range(5)))) == list("01234")


def test_what_is_no_longer_wanted_is_dropped_and_read_again_if_it_is_taken():
    reading = Reading()
    with ahead(reading) as reader:
        reader.want(draws(1, 2))
        reading.wait_for(2)
        reader.want(draws(2))
        assert names(reader.take(draws(1, 2))) == ["1", "2"]
    assert reading.read == [1, 2, 1]


def test_one_draw_taken_twice_in_a_batch_is_read_once():
    reading = Reading()
    with ahead(reading) as reader:
        assert names(reader.take(draws(1, 1))) == ["1", "1"]
    assert reading.read == [1]


@pytest.mark.parametrize("error", [ValueError("odd"), StopIteration("over"), MemoryError()])
def test_an_error_of_the_thread_is_raised_where_samples_are_taken(error):
    with ahead(Reading(failing=error)) as reader:
        for _ in range(2):
            with pytest.raises(type(error)):
                reader.take(draws(1))


def test_a_fault_is_an_answer():
    with ahead(lambda wanted: [Fault(reason="broken")] * len(wanted)) as reader:
        assert reader.take(draws(1)) == [Fault(reason="broken")]


def test_closing_ends_a_read_that_is_running_and_the_thread():
    gate = threading.Event()
    reader = ahead(Reading(gate), end=gate.set)
    reader.want(draws(1))
    reader.close()
    assert not reader._thread.is_alive()
