"""Timing waits for the device: neither model is charged with what the other left running.

Holds: tests of ``secant.uses.output_scores``; its sums are tested where a use reports them.
May import: torch, ``secant``.
"""

from types import SimpleNamespace

import torch
from torch import nn

from secant.engine.plan import Batch
from secant.uses.output_scores import REPEATS, timed


def events_of_timing(device, monkeypatch):
    """What happens in which order, on a device that only notes that it was waited for."""
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    feed = SimpleNamespace(
        loaded=SimpleNamespace(device=torch.device(device)),
        forward=lambda model, batch: (lambda: events.append("forward"), None),
    )
    timed(feed, nn.Identity(), nn.Identity(), Batch(0, (0,)))
    return events


def test_each_forward_is_timed_between_two_waits_for_the_device(monkeypatch):
    events = events_of_timing("cuda", monkeypatch)
    assert events == ["wait", "forward", "wait"] * 2 * (REPEATS + 1)
    assert events_of_timing("cpu", monkeypatch) == ["forward"] * 2 * (REPEATS + 1)
