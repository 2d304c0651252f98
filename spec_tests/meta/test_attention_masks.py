# SPDX-License-Identifier: Apache-2.0
"""Masks for devices that the suite need not have, and for traces that torch makes with tensors of its own."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from addons import attention_masks as masks

LOWEST = torch.finfo(torch.float32).min
EMBEDS = torch.zeros(1, 2, 4)


class Elsewhere(torch.Tensor):
    """It says that it lies on another device."""

    kind = "cpu"

    @property
    def device(self):
        return torch.device(self.kind)


def mask_on(kind):
    """The first query sees no key, the second sees one."""
    mask = torch.tensor([[[[LOWEST, LOWEST], [0.0, LOWEST]]]]).as_subclass(Elsewhere)
    mask.kind = kind
    return mask


@pytest.mark.parametrize(("kind", "seen"), [("cuda", 0.0), ("xpu", 0.0), ("cpu", LOWEST), ("meta", LOWEST)])
def test_query_without_a_key_sees_all_where_the_kernels_fail_at_it(kind, seen):
    made = masks._prepare_4d_causal_attention_mask_for_sdpa(mask_on(kind), (1, 2), EMBEDS, 0)
    assert made.tolist() == [[[[seen, seen], [0.0, LOWEST]]]]


def test_trace_goes_by_no_numbers():
    with FakeTensorMode():
        embeds, ones = torch.zeros(1, 2, 4), torch.ones(1, 2)
    kept = masks._prepare_4d_causal_attention_mask_for_sdpa(mask_on("cuda"), (1, 2), embeds, 0)
    assert kept.tolist() == mask_on("cuda").tolist()
    assert not masks.AttentionMaskConverter._ignore_causal_mask_sdpa(None, embeds, 0)
    assert not masks.AttentionMaskConverter._ignore_causal_mask_sdpa(torch.ones(1, 2), embeds, 0)
    assert masks._prepare_4d_attention_mask_for_sdpa(ones, torch.float32).shape == (1, 1, 2, 2)
