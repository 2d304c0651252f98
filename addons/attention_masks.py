# SPDX-License-Identifier: Apache-2.0
"""Attention masks as transformers.modeling_attn_mask_utils made them until 5.23; 5.24 has no such module.

compat_guards puts this text into copied model code, which has to run without these add-ons: it imports torch alone, and
has no backslash and no run of single quotes. 0 lets a query see a key, the lowest number of the dtype hides it.
"""

from __future__ import annotations

from typing import Any

import torch


class AttentionMaskConverter:
    """Masks of shape (batch, 1, queries, keys), causal or not."""

    def __init__(self, is_causal: bool, sliding_window: int | None = None) -> None:
        if sliding_window is not None and sliding_window <= 0:
            raise ValueError(f"sliding_window must be positive, not {sliding_window}")
        self.is_causal, self.sliding_window = is_causal, sliding_window

    def to_causal_4d(
        self, batch_size: int, query_length: int, key_value_length: int, dtype: Any, device: Any = "cpu"
    ) -> Any:
        """For what hides no key but later ones and those before the window; None where that is none."""
        if not self.is_causal:
            raise ValueError("is_causal must be True for a causal mask")
        if query_length < 2 and self.sliding_window is None:
            return None
        shape, before = (batch_size, query_length), key_value_length - query_length
        return self._make_causal_mask(shape, dtype, device, before, self.sliding_window)

    def to_4d(self, attention_mask_2d: Any, query_length: int, dtype: Any, key_value_length: Any = None) -> Any:
        """For what hides the keys that are 0 in ``attention_mask_2d`` too."""
        if not self.is_causal and self.sliding_window is not None:
            raise NotImplementedError("is_causal must be True for a sliding window")
        mask, causal = self._expand_mask(attention_mask_2d, dtype, query_length), None
        if self.is_causal and (query_length > 1 or self.sliding_window is not None):
            if key_value_length is None:
                raise ValueError("key_value_length must be given for a causal mask")
            causal = self.to_causal_4d(1, query_length, key_value_length, dtype, mask.device)
        return mask if causal is None else causal.masked_fill(mask.bool(), torch.finfo(dtype).min)

    @staticmethod
    def _make_causal_mask(
        input_ids_shape: Any, dtype: Any, device: Any, past_key_values_length: int = 0, sliding_window: Any = None
    ) -> Any:
        end = past_key_values_length + input_ids_shape[1]
        keys = torch.arange(end, device=device)
        queries = torch.arange(past_key_values_length, end, device=device)[:, None]
        hidden = keys > queries
        if sliding_window is not None:
            hidden |= keys < queries - sliding_window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, torch.finfo(dtype).min)
        return mask.expand(input_ids_shape[0], 1, -1, -1)

    @staticmethod
    def _expand_mask(mask: Any, dtype: Any, tgt_len: Any = None) -> Any:
        rows = mask.shape[1] if tgt_len is None else tgt_len
        hidden = 1.0 - mask[:, None, None].expand(-1, 1, rows, -1).to(dtype)
        return hidden.masked_fill(hidden.bool(), torch.finfo(dtype).min)

    @staticmethod
    def _unmask_unattended(expanded_mask: Any, min_dtype: float) -> Any:
        if expanded_mask.dtype == torch.bool:
            raise ValueError("expanded_mask must be of floats")
        return expanded_mask.masked_fill((expanded_mask == min_dtype).all(-1, keepdim=True), 0)

    @staticmethod
    def _ignore_causal_mask_sdpa(
        attention_mask: Any,
        inputs_embeds: Any,
        past_key_values_length: int,
        sliding_window: Any = None,
        is_training: bool = False,
    ) -> bool:
        if _is_traced(inputs_embeds) and (attention_mask is not None or not is_training):
            return False
        queries = inputs_embeds.shape[1]
        keys = queries + past_key_values_length
        if (sliding_window is not None and keys >= sliding_window) or queries not in (1, keys):
            return False
        return attention_mask is None or (attention_mask.dim() != 4 and bool((attention_mask == 1).all()))


def _is_traced(tensor: Any) -> bool:
    # A trace that went by the numbers of its example would be wrong for others.
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
        or isinstance(tensor, (torch.fx.Proxy, torch._subclasses.FakeTensor))
    )


def _create_4d_causal_attention_mask(
    input_shape: Any, dtype: Any, device: Any, past_key_values_length: int = 0, sliding_window: Any = None
) -> Any:
    converter, keys = AttentionMaskConverter(True, sliding_window), past_key_values_length + input_shape[-1]
    return converter.to_causal_4d(input_shape[0], input_shape[-1], keys, dtype, device)


def _prepare_4d_causal_attention_mask(
    attention_mask: Any, input_shape: Any, inputs_embeds: Any, past_key_values_length: int, sliding_window: Any = None
) -> Any:
    dtype, keys = inputs_embeds.dtype, past_key_values_length + input_shape[-1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return AttentionMaskConverter(True, sliding_window).to_4d(attention_mask, input_shape[-1], dtype, keys)
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.shape != (wanted := (input_shape[0], 1, input_shape[1], keys)):
            raise ValueError(f"attention_mask must be of shape {wanted}, not {tuple(attention_mask.shape)}")
        hidden = 1.0 - attention_mask
        return hidden.masked_fill(hidden.bool(), torch.finfo(dtype).min)
    device = inputs_embeds.device
    return _create_4d_causal_attention_mask(input_shape, dtype, device, past_key_values_length, sliding_window)


def _prepare_4d_causal_attention_mask_for_sdpa(
    attention_mask: Any, input_shape: Any, inputs_embeds: Any, past_key_values_length: int, sliding_window: Any = None
) -> Any:
    past, dtype, device = past_key_values_length, inputs_embeds.dtype, inputs_embeds.device
    if AttentionMaskConverter._ignore_causal_mask_sdpa(attention_mask, inputs_embeds, past, sliding_window):
        return None
    if attention_mask is None:
        return _create_4d_causal_attention_mask(input_shape, dtype, device, past, sliding_window)
    if attention_mask.dim() != 4:
        converter, queries = AttentionMaskConverter(True, sliding_window), input_shape[-1]
        attention_mask = converter.to_4d(attention_mask, queries, dtype, queries + past)
    # SDPA's own kernels there give NaN for a query that sees no key.
    if attention_mask.device.type not in ("cuda", "xpu") or _is_traced(inputs_embeds):
        return attention_mask
    return AttentionMaskConverter._unmask_unattended(attention_mask, torch.finfo(dtype).min)


def _prepare_4d_attention_mask(mask: Any, dtype: Any, tgt_len: Any = None) -> Any:
    return AttentionMaskConverter._expand_mask(mask, dtype, tgt_len)


def _prepare_4d_attention_mask_for_sdpa(mask: Any, dtype: Any, tgt_len: Any = None) -> Any:
    return None if not _is_traced(mask) and (mask == 1).all() else _prepare_4d_attention_mask(mask, dtype, tgt_len)
