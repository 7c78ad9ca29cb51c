"""Saved programs run where nothing but torch is at hand.

Holds: tests of ``secant.uses.saved_modules``.
May import: torch, transformers, ``secant``.
"""

import subprocess
import sys

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from secant.uses.saved_modules import save_program

LOAD = """
import sys, torch
module = torch.export.load(sys.argv[1]).module()
found = module(torch.ones(3, 4))
assert "transformers" not in sys.modules
print(type(found).__name__, *found, *found["last_hidden_state"].shape)
"""


class Named(nn.Module):
    """Gives what a Hugging Face encoder gives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return BaseModelOutput(last_hidden_state=self.layer(x))


def test_an_output_of_its_own_class_loads_without_that_class(tmp_path):
    module = Named().eval()
    save_program(module, torch.ones(2, 4), tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model.pt2")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["dict", "last_hidden_state", "3", "2"]
    assert isinstance(module(torch.ones(2, 4)), BaseModelOutput)
