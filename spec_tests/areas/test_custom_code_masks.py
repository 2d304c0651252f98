# SPDX-License-Identifier: Apache-2.0
"""CODE: the masks of copied code whose module transformers has removed (spec/custom_code.md)."""

from __future__ import annotations

import ast

import pytest

from spec_tests.consumers.code import import_files, lacking
from spec_tests.harness.export import save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

MASKS = "transformers.modeling_attn_mask_utils"
TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
# A model's file: the masks that all functions make of random arguments, and the errors that they raise.
HEAD = f"""
import random
import torch
from {MASKS} import (
    AttentionMaskConverter,
    _create_4d_causal_attention_mask,
    _prepare_4d_attention_mask,
    _prepare_4d_attention_mask_for_sdpa,
    _prepare_4d_causal_attention_mask,
    _prepare_4d_causal_attention_mask_for_sdpa,
)

def pads(rows, columns):
    if random.random() < 0.25:
        return torch.ones(rows, columns, dtype=torch.long)
    return torch.tensor([[int(random.random() < 0.7) for _ in range(columns)] for _ in range(rows)])

def told(function, *args, **kwargs):
    try:
        made = function(*args, **kwargs)
    except (ValueError, NotImplementedError) as error:
        return type(error).__name__
    if isinstance(made, torch.Tensor):
        return str(made.dtype), list(made.shape), (made.float() + 0.0).tolist()  # without -0.0
    return made

found = []
random.seed(3)
for number in range(60):
    batch, queries, past = random.randint(1, 3), random.choice([1, 1, 2, 3, 5]), random.choice([0, 0, 1, 4])
    window = random.choice([None, None, 1, 2, 5, 9])
    dtype = random.choice([torch.float32, torch.float16, torch.bfloat16])
    keys = queries + past
    shape, embeds, mask = (batch, queries), torch.zeros(batch, queries, 2, dtype=dtype), pads(batch, keys)
    lowest = torch.finfo(dtype).min
"""
BY_ALL_FUNCTIONS = """
    whole = pads(queries, keys).expand(batch, 1, -1, -1)
    converter = AttentionMaskConverter
    for given in (mask, mask.to(dtype), whole.to(dtype), whole[..., :-1].to(dtype), None):
        for function in (_prepare_4d_causal_attention_mask, _prepare_4d_causal_attention_mask_for_sdpa):
            found.append(told(function, given, shape, embeds, past, window))
            found.append(told(function, given, torch.Size(shape), embeds, past_key_values_length=past))
            found.append(told(function, given, [batch, 7, queries], embeds, past, window))  # its ends count
        for training in (False, True):
            found.append(told(
                converter._ignore_causal_mask_sdpa, attention_mask=given, inputs_embeds=embeds,
                past_key_values_length=past, sliding_window=window, is_training=training,
            ))
    found.append(told(_create_4d_causal_attention_mask, shape, dtype, embeds.device, past, window))
    found.append(told(_create_4d_causal_attention_mask, [batch, 7, queries], dtype, embeds.device, past, window))
    for function in (_prepare_4d_attention_mask, _prepare_4d_attention_mask_for_sdpa):
        found.append(told(function, mask, dtype))
        found.append(told(function, mask, dtype, tgt_len=queries))
    for causal, sliding in ((True, None), (True, window), (False, None), (False, window), (True, 0)):
        def to_4d(length):
            made = converter(is_causal=causal, sliding_window=sliding)
            return made.to_4d(mask, queries, dtype=dtype, key_value_length=length)
        def to_causal_4d():
            return converter(causal, sliding).to_causal_4d(batch, queries, keys, dtype=dtype, device=embeds.device)
        found += [told(to_4d, keys), told(to_4d, None), told(to_causal_4d)]
    rows = lowest * pads(queries, keys).to(dtype).expand(batch, 1, -1, -1)
    found.append(told(converter._unmask_unattended, rows, min_dtype=lowest))
    found.append(told(converter._unmask_unattended, rows.bool(), lowest))
    found.append(told(converter._expand_mask, mask, dtype))
    found.append(told(converter._make_causal_mask, shape, dtype, embeds.device, past, window))
"""
ELSEWHERE = """
found = []
for device in ("meta", "cpu"):
    embeds = torch.zeros(2, 3, 2, device=device)
    ones = torch.ones(2, 3, dtype=torch.long, device=device)
    made = [
        _create_4d_causal_attention_mask((2, 3), torch.float32, embeds.device),
        _prepare_4d_causal_attention_mask(None, (2, 3), embeds, 0),
        _prepare_4d_causal_attention_mask(ones, (2, 3), embeds, 0),
        _prepare_4d_causal_attention_mask_for_sdpa(None, (2, 3), embeds, 1),
        _prepare_4d_attention_mask(ones, torch.float32),
        AttentionMaskConverter(True).to_causal_4d(2, 3, 3, torch.float32, embeds.device),
    ]
    found.append((device, [mask.device.type for mask in made]))
"""
# Of tensors that have no numbers, and of such as say that they lie elsewhere.
WITHOUT_NUMBERS = """
from torch._subclasses import FakeTensorMode

real, ones, lowest = torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.long), torch.finfo(torch.float32).min
with FakeTensorMode():
    fake = torch.zeros(2, 3, 2)
    made = _prepare_4d_attention_mask_for_sdpa(torch.ones(2, 3, dtype=torch.long), torch.float32)
found = [list(made.shape)]
asked = AttentionMaskConverter._ignore_causal_mask_sdpa
torch.fx.symbolic_trace(lambda embeds: found.append(asked(None, embeds, 0)) or embeds)
traced = torch.fx.symbolic_trace(lambda mask: _prepare_4d_attention_mask_for_sdpa(mask, torch.float32))
found.append((traced(torch.tensor([[0, 1]])) == lowest).tolist())
for embeds in (real, fake):
    found.append([asked(None, embeds, 0), asked(ones, embeds, 0), asked(None, embeds, 0, is_training=True)])
    for kind in ("cpu", "cuda", "xpu"):
        class Placed(torch.Tensor):
            device = torch.device(kind)
        given = torch.tensor([[[[lowest, lowest], [0.0, lowest]]]]).as_subclass(Placed)
        made = _prepare_4d_causal_attention_mask_for_sdpa(given, (1, 2), embeds[:1, :2], 0)
        found.append((kind, (made == lowest).tolist()))
"""
BY_DEFINITION = """
    facts = queries, past, window, mask.tolist(), lowest
    found.append((facts, told(_prepare_4d_causal_attention_mask, mask, shape, embeds, past, window)))
    facts = queries, past, window, torch.ones_like(mask).tolist(), lowest
    found.append((facts, told(_create_4d_causal_attention_mask, shape, dtype, embeds.device, past, window)))
    facts = queries, keys, None, mask.tolist(), lowest
    found.append((facts, told(_prepare_4d_attention_mask, mask, dtype, tgt_len=queries)))
"""
TRACED = """
found = []
for function in (_prepare_4d_causal_attention_mask_for_sdpa, lambda mask, shape, embeds, past: (
    _prepare_4d_attention_mask_for_sdpa(mask, embeds.dtype, tgt_len=shape[1])
)):
    class Model(torch.nn.Module):
        def forward(self, mask, embeds):
            made = function(mask, embeds.shape[:2], embeds, 0)
            return embeds if made is None else made
    ones, embeds = torch.ones(2, 3, dtype=torch.long), torch.zeros(2, 3, 2)
    class Asked(torch.nn.Module):
        def forward(self, mask, embeds):
            asked = AttentionMaskConverter._ignore_causal_mask_sdpa
            found.extend(told(asked, None, embeds, 0, is_training=training) for training in (False, True))
            return embeds + 0
    torch.jit.trace(Asked(), (ones, embeds), check_trace=False)
    exported = torch.export.export(Model(), (ones, embeds)).module()
    found.append(told(exported, torch.tensor([[0, 1, 1], [1, 1, 0]]), embeds))
    # Of another batch size than the example's.
    scripted = torch.jit.trace(Model(), (ones, embeds))
    found.append(told(scripted, torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]]), torch.zeros(3, 3, 2)))
"""


def masks(impl, fresh_dir, body, without=(MASKS,)):
    """What ``found`` is in the copy of a file of masks; with nothing ``without``, by transformers' own functions."""
    original, directory = fresh_dir(), fresh_dir()
    (original / "masks.py").write_text(HEAD + body, encoding="utf-8")
    save_metadata(impl, TREE.build(), directory, original_model_path=str(original))
    [(found, _)] = import_files([directory / "masks.py"], [], without=without)
    return ast.literal_eval(found) if found.startswith("[") else pytest.fail(found)


def by_definition(queries, past, window, visible, lowest):
    """0 where a query may see a key: one that is no padding, not behind it, and at most ``window`` before it."""

    def sees(row, query, key):
        return row[key] and key <= query + past and (window is None or key >= query + past - window)

    rows = [[[0.0 if sees(row, q, k) else lowest for k in range(len(row))] for q in range(queries)] for row in visible]
    return [[row] for row in rows]


@pytest.mark.clause("CODE-010")
def test_masks_are_what_they_have_to_be(impl, fresh_dir):
    seen = masks(impl, fresh_dir, BY_DEFINITION)
    for (queries, past, window, visible, lowest), made in seen:
        expected = by_definition(queries, past, window, visible, lowest)
        # No mask is made for one query that may see all keys.
        assert made[2] == expected if made else (queries, window) == (1, None), (queries, past, window, visible)
    assert sum(made is not None for _, made in seen) > len(seen) / 2


@pytest.mark.clause("CODE-010")
def test_masks_lie_where_the_model_computes(impl, fresh_dir):
    assert masks(impl, fresh_dir, ELSEWHERE) == [(device, [device] * 6) for device in ("meta", "cpu")]


@pytest.mark.clause("CODE-010")
def test_masks_of_what_is_traced_do_not_go_by_numbers(impl, fresh_dir):
    # As transformers 5.23 makes them; releases before 5 do not know all of these tensors.
    hidden, unmasked = [[[[True, True], [False, True]]]], [[[[False, False], [False, True]]]]
    assert masks(impl, fresh_dir, WITHOUT_NUMBERS) == [
        [2, 1, 3, 3],
        False,
        [[[[True, False]] * 2]],
        [True, True, True],
        ("cpu", hidden),
        ("cuda", unmasked),  # a query that sees no key sees all: kernels there would give NaN
        ("xpu", unmasked),
        [False, False, True],
        *((kind, hidden) for kind in ("cpu", "cuda", "xpu")),
    ]


@pytest.mark.clause("CODE-010")
@pytest.mark.parametrize("body", [BY_ALL_FUNCTIONS, TRACED], ids=["all functions", "traced"])
def test_masks_are_those_of_the_last_release_that_made_them(impl, fresh_dir, body):
    seen = masks(impl, fresh_dir, body)
    # A trace makes masks, whatever its example would have done without.
    assert (
        body is not TRACED
        or [made[1] for made in seen if not isinstance(made, bool)] == [[2, 1, 3, 3], [3, 1, 3, 3]] * 2
    )
    # Newer releases have nothing to compare with: what holds of them is above, and that older ones give the same.
    if not lacking([f"{MASKS}.AttentionMaskConverter"]):
        assert seen == masks(impl, fresh_dir, body, without=())
