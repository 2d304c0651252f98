# SPDX-License-Identifier: Apache-2.0
"""CFG: quantisation settings in config.json (spec/config.md)."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

from spec_tests.builders.odd_tensors import there
from spec_tests.builders.quantised import PLACES, quantised_model
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import stage_metadata
from spec_tests.harness.ranks import SOON, run_ranks, values

KEYS = ("quantization_config", "compression_config")
SEATS = ["parameter", "buffer"]
DTYPES = {
    torch.uint8: True,
    torch.int8: True,
    torch.bfloat16: False,
    torch.float16: False,
    torch.float32: False,
    torch.bool: False,
    torch.int64: False,
}
NARROW = {**dict.fromkeys(there("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"), True), **DTYPES}


def staged(impl, model, directory, **save):
    return json.loads((stage_metadata(impl, model, directory, **save) / "config.json").read_text(encoding="utf-8"))


def quantisation_at_any_depth(content):
    if not isinstance(content, dict):
        return []
    return [key for key in KEYS if key in content] + [
        key for value in content.values() for key in quantisation_at_any_depth(value)
    ]


@pytest.mark.clause("CFG-003")
@pytest.mark.parametrize(("dtype", "quantised"), list(DTYPES.items()), ids=str)
def test_quantization_config_stands_with_quantised_parameters(impl, fresh_dir, dtype, quantised):
    content = staged(impl, quantised_model(dtype), fresh_dir())
    assert ("quantization_config" in content) is quantised


@pytest.mark.clause("CFG-004")
@pytest.mark.needs("_maybe_strip_quantization_config")
@pytest.mark.parametrize("wrapper", [None, "compile", "checkpoint"])
@pytest.mark.parametrize(("dtype", "quantised"), [(torch.uint8, True), (torch.bfloat16, False)], ids=str)
def test_helper_strips_the_live_config(impl, dtype, quantised, wrapper):
    model = quantised_model(dtype)
    wrapped = wrap(model, "", wrapper) if wrapper else model
    impl.helpers["_maybe_strip_quantization_config"](wrapped)
    assert hasattr(model.config, "quantization_config") is quantised


@pytest.mark.clause("CFG-004")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
def test_hook_leaves_the_live_config_as_it_is(impl, fresh_dir, place):
    model = quantised_model(torch.bfloat16, config=place)
    before = copy.deepcopy(model.config)
    stage_metadata(impl, model, fresh_dir())
    as_dict = dict if place == "dict" else lambda config: config.to_dict()
    assert as_dict(model.config) == as_dict(before)
    assert vars(model.config).keys() == vars(before).keys()
    assert quantisation_at_any_depth(as_dict(model.config))


@pytest.mark.clause("CFG-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
@pytest.mark.parametrize("where", ["parameter", "buffer", "non_persistent_buffer"])
@pytest.mark.parametrize(("dtype", "quantised"), list(NARROW.items()), ids=str)
def test_quantization_config_stands_exactly_with_quantised_tensors(impl, fresh_dir, dtype, quantised, where, place):
    content = staged(impl, quantised_model(dtype, where, place), fresh_dir())
    assert bool(quantisation_at_any_depth(content)) is (quantised and where != "non_persistent_buffer")


@pytest.mark.clause("CFG-005")
@pytest.mark.needs("_maybe_strip_quantization_config")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
def test_helper_strips_at_every_depth(impl, place):
    model = quantised_model(torch.bfloat16, config=place)
    impl.helpers["_maybe_strip_quantization_config"](model)
    config = dict(model.config) if place == "dict" else model.config.to_dict()
    assert quantisation_at_any_depth(config) == []


# What packs weights into wider integers (the table in spec/config.md), and what does not.
PACKED = {
    torch.int16: {"aqlm", "awq", "gptq", "higgs", "vptq"},
    torch.int32: {"auto-round", "awq", "compressed-tensors", "gptq", "hqq", "quark", "sinq", "spqr", "vptq"},
    torch.uint32: {"metal"},
    torch.int64: set(),
}
METHODS = sorted({"bitsandbytes", "eetq", "fp8", "mxfp4", "quanto"}.union(*PACKED.values()))


def every_second(items, *parts):
    """Half of ``items``; which one depends on the parts, so that each item meets each value of each part."""
    return list(items)[sum(options.index(value) for value, options in parts) % 2 :: 2]


@pytest.mark.clause("CFG-015")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", PACKED, ids=str)
@pytest.mark.parametrize("where", SEATS)
def test_wide_integers_are_quantised_as_the_method_packs(impl, fresh_dir, dtype, where, place):
    for method in every_second(METHODS, (where, SEATS), (place, PLACES)):
        content = staged(impl, quantised_model(dtype, where, place, method=method), fresh_dir())
        assert bool(quantisation_at_any_depth(content)) is (method in PACKED[dtype]), method


@pytest.mark.clause("CFG-015")
@pytest.mark.parametrize("dtype", PACKED, ids=str)
def test_method_of_a_settings_object_counts(impl, fresh_dir, dtype):
    model = quantised_model(dtype)
    model.config.quantization_config = transformers.AwqConfig(bits=4)
    assert ("quantization_config" in staged(impl, model, fresh_dir())) is (dtype in (torch.int16, torch.int32))


# Every kind of element, with a method that has it; the sub-byte ones are a matter of the name alone.
KINDS = {
    **dict.fromkeys(there("uint8", "int8", "float8_e4m3fn", "float8_e8m0fnu"), "compressed-tensors"),
    **dict.fromkeys(there("float4_e2m1fn_x2", "uint4", "int4", "uint2"), "torchao"),
    **dict.fromkeys([torch.int32, torch.int16], "gptq"),
    **dict.fromkeys([torch.bfloat16, torch.float32, torch.int64, torch.bool], None),
}


@pytest.mark.clause("CFG-016")
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("where", SEATS)
@pytest.mark.parametrize("quantised_original", [False, True], ids=["plain_original", "quantised_original"])
def test_settings_stand_exactly_with_quantised_tensors_in_both_files(
    impl, fresh_dir, quantised_original, where, place, key
):
    parts = (key, KEYS), (place, PLACES), (where, SEATS), (quantised_original, [False, True])
    for dtype, method in every_second(KINDS.items(), *parts):
        model = quantised_model(dtype, where, place, method=method or "gptq", key=key)
        live = as_dict(model.config)
        before = copy.deepcopy(live)
        path = fresh_dir()
        (path / "config.json").write_text(json.dumps(with_settings(live, key if quantised_original else None)))
        saved = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=str(path))
        for name in ("config.json", "config.v5.json"):
            content = json.loads((saved / name).read_text(encoding="utf-8"))
            assert quantisation_at_any_depth(content) == ([key] if method else []), (dtype, name)
            assert method is None or settings_at(content, place, key)["quant_method"] == method, (dtype, name)
        assert as_dict(model.config) == before


def as_dict(config):
    return json.loads(json.dumps(config if isinstance(config, dict) else config.to_dict(), default=str))


def settings_at(content, place, key):
    return (content["text_config"] if place == "nested" else content)[key]


def with_settings(content, key):
    """``content`` with quantisation settings of the original's own method, or none, where it has some."""
    if not isinstance(content, dict):
        return content
    kept = {name: with_settings(inner, key) for name, inner in content.items() if name not in KEYS}
    return kept if key is None or kept.keys() == content.keys() else {**kept, key: {"quant_method": "bitnet"}}


def stage_part(rank, world, impl, directory, quantised):
    stage_metadata(impl, quantised_model(torch.int8 if rank == quantised else torch.bfloat16), directory)


@pytest.mark.clause("CFG-003")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("quantised", [0, 1, None])
def test_quantised_tensors_of_any_rank_count(impl, fresh_dir, quantised):
    directory = fresh_dir() / "staged"
    values(run_ranks(2, stage_part, impl, directory, quantised, timeout=2 * SOON))
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert ("quantization_config" in content) is (quantised is not None)
