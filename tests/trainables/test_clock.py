"""What goes into measuring is counted once, however it is nested; of a process' CPU time nothing is told twice."""

import threading
import time

import pytest

from trainables.clock import CpuMeter, Moment, evaluating, evaluation_so_far


@pytest.fixture
def clock(monkeypatch):
    """Wall and CPU time as the test sets them."""
    now = Moment(100.0, 10.0)

    def pass_by(seconds, cpu_seconds):
        nonlocal now
        now += Moment(seconds, cpu_seconds)

    monkeypatch.setattr("trainables.clock.time.monotonic", lambda: now.seconds)
    monkeypatch.setattr("trainables.clock.time.process_time", lambda: now.cpu_seconds)
    return pass_by


@pytest.fixture
def measured():
    """What was spent on measuring since the test began."""
    before = evaluation_so_far()

    def since():
        span = evaluation_so_far() - before
        return pytest.approx((span.seconds, span.cpu_seconds))

    return since


def test_only_what_goes_by_inside_is_measuring(clock, measured):
    clock(1.0, 1.0)
    with evaluating():
        clock(2.0, 0.5)
    clock(4.0, 4.0)
    with evaluating():
        clock(8.0, 3.0)
    assert (10.0, 3.5) == measured()


def test_measuring_within_measuring_counts_once(clock, measured):
    with evaluating():
        clock(1.0, 1.0)
        with evaluating():
            clock(2.0, 2.0)
        clock(4.0, 4.0)
    assert (7.0, 7.0) == measured()


def test_what_is_under_way_counts_already(clock, measured):
    with evaluating():
        clock(3.0, 2.0)
        assert (3.0, 2.0) == measured()
        clock(1.0, 1.0)
    assert (4.0, 3.0) == measured()


def test_measuring_that_fails_ends_there(clock, measured):
    with pytest.raises(ZeroDivisionError), evaluating():
        clock(1.0, 1.0)
        raise ZeroDivisionError
    clock(5.0, 5.0)
    assert (1.0, 1.0) == measured()


def test_threads_that_measure_at_once_count_once(clock, measured):
    inside, may_leave = threading.Barrier(3), threading.Event()

    def measure():
        with evaluating():
            inside.wait(timeout=10)
            may_leave.wait(timeout=10)

    threads = [threading.Thread(target=measure) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=10)
    clock(2.0, 4.0)
    may_leave.set()
    for thread in threads:
        thread.join()
    clock(1.0, 1.0)
    assert (2.0, 4.0) == measured()


def test_a_meter_tells_all_cpu_time_of_its_process_once():
    meter, before = CpuMeter(), time.process_time()
    told = [meter.take()]
    while time.process_time() < before + 0.05:
        pass
    told += [meter.take(), meter.take()]
    assert told[0] >= before  # also what was used before there was a meter
    assert told[1] >= 0.04
    assert sum(told) == pytest.approx(time.process_time(), abs=0.02)


def test_real_clocks_tell_work_from_waiting(measured):
    with evaluating():
        time.sleep(0.05)
    seconds, cpu_seconds = measured().expected
    assert seconds >= 0.05
    assert cpu_seconds < 0.04
