"""Parts that the debate names as torch modules: activations, recurrences and scans, and more.

Holds: the public names of this folder, torch's own activations among them.
May import: torch, ``secant.nn``.
"""

from torch.nn import Identity, LeakyReLU, PReLU, ReLU, Sigmoid, Softplus, Tanh

from secant.nn.activations import Exp, KMax, LinearSquash, Sine, Snake, Swish, Tunable
from secant.nn.fourier import FourierFeatures, FourierLayer, SirenLayer, siren
from secant.nn.linear_state import LinearLayer, LinearState
from secant.nn.rational import Rational
from secant.nn.recurrence import (
    GILR,
    GILRLSTM,
    LRU,
    S6,
    DeltaNet,
    DiagonalRNN,
    LinearRNN,
    Mamba,
    MambaBlock,
    MambaLM,
    MambaShape,
    mamba_from,
)
from secant.nn.rounded import RoundedLinear, Rounding, flatten, rounded
from secant.nn.scan import scan
from secant.nn.scan_routes import ScanRoute, scan_routes
from secant.nn.spline import Spline
from secant.nn.swap import Place, Swapped, swap

__all__ = [
    "GILR",
    "GILRLSTM",
    "LRU",
    "S6",
    "DeltaNet",
    "DiagonalRNN",
    "Exp",
    "FourierFeatures",
    "FourierLayer",
    "Identity",
    "KMax",
    "LeakyReLU",
    "LinearLayer",
    "LinearRNN",
    "LinearSquash",
    "LinearState",
    "Mamba",
    "MambaBlock",
    "MambaLM",
    "MambaShape",
    "PReLU",
    "Place",
    "Rational",
    "ReLU",
    "RoundedLinear",
    "Rounding",
    "ScanRoute",
    "Sigmoid",
    "Sine",
    "SirenLayer",
    "Snake",
    "Softplus",
    "Spline",
    "Swapped",
    "Swish",
    "Tanh",
    "Tunable",
    "flatten",
    "mamba_from",
    "rounded",
    "scan",
    "scan_routes",
    "siren",
    "swap",
]
