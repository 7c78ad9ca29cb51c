"""Timing waits for the device: no forward is charged with what another left running.

Holds: tests of ``secant.uses.timing``.
May import: pytest, torch, ``secant.uses``.
"""

import pytest
import torch

from secant.uses import timing
from secant.uses.timing import ROUNDS, medians


def test_each_forward_is_timed_between_two_waits_for_the_device(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    forwards = [lambda: events.append("one"), lambda: events.append("other")]
    medians(forwards, torch.device("cuda"))
    assert events == ["wait", "one", "wait", "wait", "other", "wait"] * (ROUNDS + 1)
    events.clear()
    medians(forwards, torch.device("cpu"))
    assert events == ["one", "other"] * (ROUNDS + 1)


def test_the_median_is_of_the_rounds_after_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    takes = iter([100.0, *range(1, ROUNDS + 1)])

    def forward():
        assert not torch.is_grad_enabled()
        clock[0] += next(takes)

    told = []
    found = medians([forward], torch.device("cpu"), lambda *at: told.append(at))
    assert found == [pytest.approx((ROUNDS + 1) / 2)]
    assert told[-1] == ("timing", ROUNDS + 1, ROUNDS + 1)
