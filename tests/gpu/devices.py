"""Where these tests run: on the GPU, or, to rehearse them, on the CPU at sizes of a moment."""

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
# Of the largest value expected, over a few layers with large weights.
TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 6e-2}
TIME = 193 if CUDA else 19
"""Tokens of a sequence: odd, and on a GPU more than a block of any kernel."""
WIDTH, HEADS = (256, 4) if CUDA else (32, 2)

only_cuda = pytest.mark.skipif(not CUDA, reason="only a CUDA device has what is tested here")
