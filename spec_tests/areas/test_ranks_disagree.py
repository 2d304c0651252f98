# SPDX-License-Identifier: Apache-2.0
"""RANK: ranks that are told different things are refused, each with the name of the setting (spec/ranks.md)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from spec_tests.builders import hf
from spec_tests.builders.families import SMALL_FILES
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.harness.export import Adapter, error_of, indexed_weights, snapshot, text_of
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))
OF_BOTH = ("directory", "tokenizer", "original_model_path", "v4_compatible")
OF_CONFIGS = ("alpha", "task_type", "use_dora")
OF_ADAPTERS = (*OF_BOTH, "legacy_paramwrapper_layout", *OF_CONFIGS)
OF_MODELS = (*OF_BOTH, "dtype", "max_shard_bytes", "asynchronous")


def odd_value(setting, place, original):
    """What the one rank passes: the others pass ``place``, and no other setting."""
    return {
        "directory": place.with_name("another"),
        "tokenizer": tokenizer(),
        "original_model_path": str(original),
        "dtype": torch.bfloat16,
        "max_shard_bytes": SMALL_FILES,
        "alpha": 16,
        "task_type": "FEATURE_EXTRACTION",
    }.get(setting, True)


def save(impl, whole, directory, **keywords):
    """Either save, with everything that is left to wait for."""
    if not whole:
        config = {"alpha": 8} | {name: keywords.pop(name) for name in OF_CONFIGS if name in keywords}
        impl.save_adapter(TREE.build(), directory, impl.peft_config(dim=4, **config), **keywords)
        return
    pending = impl.save_consolidated(hf.llama(), directory, **keywords)
    if pending is not None:
        pending.result()


def save_with_one_odd(rank, world, impl, whole, place, original, setting):
    """One rank after the other is the odd one; returns what this rank heard each time."""
    heard = []
    # The original config has to be there for every rank, so that nothing but the setting itself is wrong.
    more = {"original_model_path": str(original)} if setting == "v4_compatible" else {}
    for odd in range(world):
        keywords = {"directory": place, **more}
        if rank == odd:
            keywords[setting] = odd_value(setting, place, original)
        heard.append(text_of(error_of(lambda: save(impl, whole, **keywords))))  # noqa: B023 - called at once
    return heard


def check_refused(impl, parent, original, whole, world, setting):
    hf.llama().config.save_pretrained(original)
    (original / "modeling_tiny.py").write_text("")
    arguments = (impl, whole, parent / "saved", original, setting)
    heard = values(run_ranks(world, save_with_one_odd, *arguments, timeout=2 * SOON))
    # The places are called like the case, and so like the setting.
    named, places = re.compile(rf"\b{setting}\b"), re.compile(f"{re.escape(str(original))}|{re.escape(str(parent))}")
    said = [[places.sub("", text) for text in texts] for texts in heard]
    silent = [
        (rank, odd) for rank, texts in enumerate(said) for odd, text in enumerate(texts) if not named.search(text)
    ]
    assert silent == [], heard
    assert snapshot(parent) == {}


@pytest.mark.clause("RANK-009")
@pytest.mark.parametrize(("world", "setting"), [(2, "directory"), *((3, setting) for setting in OF_ADAPTERS)])
def test_adapter_that_ranks_save_differently_is_refused(impl, fresh_dir, world, setting):
    check_refused(impl, fresh_dir(), fresh_dir(), False, world, setting)


@pytest.mark.clause("RANK-010")
@pytest.mark.parametrize(
    ("world", "setting"),
    [
        (2, "directory"),
        *((3, setting) for setting in OF_MODELS),
        pytest.param(2, "merge_lora", marks=pytest.mark.needs("merge_lora")),
    ],
)
def test_model_that_ranks_save_differently_is_refused(impl, fresh_dir, world, setting):
    check_refused(impl, fresh_dir(), fresh_dir(), True, world, setting)


def save_said_otherwise(rank, world, impl, whole, parent, link):
    """The same settings, each rank in words of its own."""
    original = [str, Path][rank % 2](link.parent)
    os.chdir(parent)
    spelled = [parent / "saved", f"{parent}/../{parent.name}/saved/", "saved", link / "saved"][rank]
    # Each rank has read its own tokenizer.
    more = {"v4_compatible": False} if rank else {}
    save(impl, whole, spelled, tokenizer=tokenizer(), original_model_path=original, **more)


@pytest.mark.clause("RANK-012")
@pytest.mark.needs("save_adapter")
def test_adapter_of_equal_settings_in_other_words_is_saved(impl, fresh_dir):
    parent = fresh_dir()
    (link := fresh_dir() / "link").symlink_to(parent)
    values(run_ranks(4, save_said_otherwise, impl, False, parent, link, timeout=2 * SOON))
    assert [path.name for path in parent.iterdir()] == ["saved"]
    assert Adapter(parent / "saved").modules == TREE.expected_targets()


@pytest.mark.clause("RANK-012")
@pytest.mark.needs("save_consolidated")
def test_model_of_equal_settings_in_other_words_is_saved(impl, fresh_dir):
    parent = fresh_dir()
    (link := fresh_dir() / "link").symlink_to(parent)
    values(run_ranks(4, save_said_otherwise, impl, True, parent, link, timeout=2 * SOON))
    assert [path.name for path in parent.iterdir()] == ["saved"]
    assert indexed_weights(parent / "saved").keys() == hf.llama().state_dict().keys()


def save_over_an_earlier_one(rank, world, impl, whole, place):
    save(impl, whole, place)
    before = snapshot(place)
    odd = place.with_name("another") if rank else place
    error = error_of(lambda: save(impl, whole, odd))
    return text_of(error), snapshot(place) == before


@pytest.mark.clause("RANK-009", "ERR-001")
@pytest.mark.needs("save_adapter")
def test_refused_adapter_leaves_the_earlier_one(impl, fresh_dir):
    heard = values(run_ranks(2, save_over_an_earlier_one, impl, False, fresh_dir() / "saved", timeout=2 * SOON))
    assert [("directory" in said, same) for said, same in heard] == [(True, True)] * 2, heard


@pytest.mark.clause("RANK-010", "ERR-001")
@pytest.mark.needs("save_consolidated")
def test_refused_model_leaves_the_earlier_one(impl, fresh_dir):
    heard = values(run_ranks(2, save_over_an_earlier_one, impl, True, fresh_dir() / "saved", timeout=2 * SOON))
    assert [("directory" in said, same) for said, same in heard] == [(True, True)] * 2, heard


def save_parts_of_its_own(rank, world, impl, directory):
    parts = [TreeSpec((Leaf(f"model.layers.{2 * rank + number}.q_proj"),)).build() for number in range(2)]
    impl.save_adapter(parts, directory, impl.peft_config(dim=4, alpha=8))


@pytest.mark.clause("RANK-005")
@pytest.mark.needs("save_adapter")
@pytest.mark.parametrize("world", [2, 3])
def test_parts_of_an_adapter_without_a_pipeline_group_are_refused(impl, fresh_dir, world):
    parent = fresh_dir()
    results = run_ranks(world, save_parts_of_its_own, impl, parent / "adapter", timeout=2 * SOON)
    assert all_failed(results), results
    assert snapshot(parent) == {}


def save_another_tensor(rank, world, impl, directory, how, odd):
    model = hf.llama().to(torch.float16 if how == "dtype of one size" else torch.float32)
    if rank == odd:
        model = hf.llama(vocab_size=72) if how == "shape" else model.to(torch.bfloat16)
    impl.save_consolidated(model, directory)


@pytest.mark.clause("RANK-011")
@pytest.mark.parametrize(
    ("how", "world", "odd"), [("shape", 2, 0), ("shape", 3, 2), ("dtype", 3, 0), ("dtype of one size", 2, 1)]
)
def test_tensor_of_another_shape_or_dtype_is_refused_by_name(impl, fresh_dir, how, world, odd):
    parent = fresh_dir()
    results = run_ranks(world, save_another_tensor, impl, parent / "model", how, odd, timeout=2 * SOON)
    assert all_failed(results), results
    names = ("lm_head.weight", "model.embed_tokens.weight") if how == "shape" else hf.llama().state_dict().keys()
    assert all(any(name in result.error for name in names) for result in results), results
    assert snapshot(parent) == {}
