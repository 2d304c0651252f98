# SPDX-License-Identifier: Apache-2.0
"""Generated states of models: tensors of every dtype that safetensors has, of every shape down to none."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from spec_tests.builders.odd_tensors import FLOAT8, FLOATS, INTEGERS, KINDS, Tensor


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Up to three dimensions, some of no element."""
    return st.lists(st.integers(0, 5), max_size=3).map(tuple)


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """Every dtype that comes back bit for bit."""
    return st.sampled_from([*FLOATS, *FLOAT8, *INTEGERS])


def states() -> st.SearchStrategy[list[Tensor]]:
    """From one tensor up to eight."""
    drawn = st.builds(Tensor, dtypes(), shapes(), st.sampled_from(KINDS))
    return st.lists(drawn, min_size=1, max_size=8)


def file_sizes() -> st.SearchStrategy[int]:
    """Bytes a weights file: from less than any tensor to more than all."""
    return st.integers(1, 600) | st.sampled_from([1, 5 * 10**9])
