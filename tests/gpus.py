"""What tests on a GPU are marked with."""

from __future__ import annotations

from typing import Final

import pytest
import torch

NEEDS_GPU: Final = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU that CUDA shows, which this machine has not"
)
