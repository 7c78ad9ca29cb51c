"""Recurrences that are linear in their state, so that a scan runs them along the sequence.

Holds: the public names of this folder.
May import: ``secant.nn.recurrence``.

Every layer takes (batch, length, features) and an optional state, and gives outputs and the last
state, as torch's recurrent layers do. ``step`` takes one step of every sequence; a sequence may be
cut anywhere if the state is carried on.
"""

from secant.nn.recurrence.delta import DeltaNet, delta_rule
from secant.nn.recurrence.diagonal import DiagonalRNN
from secant.nn.recurrence.gilr import GILR, GILRLSTM, GILRLSTMState
from secant.nn.recurrence.linear_rnn import LinearRNN
from secant.nn.recurrence.lru import LRU
from secant.nn.recurrence.mamba import (
    Mamba,
    MambaBlock,
    MambaLM,
    MambaMixer,
    MambaShape,
    MambaState,
    MixerState,
)
from secant.nn.recurrence.mamba_weights import mamba_from
from secant.nn.recurrence.s6 import S6, TimeStep, selective_scan

__all__ = [
    "GILR",
    "GILRLSTM",
    "LRU",
    "S6",
    "DeltaNet",
    "DiagonalRNN",
    "GILRLSTMState",
    "LinearRNN",
    "Mamba",
    "MambaBlock",
    "MambaLM",
    "MambaMixer",
    "MambaShape",
    "MambaState",
    "MixerState",
    "TimeStep",
    "delta_rule",
    "mamba_from",
    "selective_scan",
]
