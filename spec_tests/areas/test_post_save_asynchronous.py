# SPDX-License-Identifier: Apache-2.0
"""POST: what is saved while training goes on, and two saves under way at once (spec/post_save.md)."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.families import SMALL_FILES
from spec_tests.builders.training import shard_whole
from spec_tests.consumers.headers import weights_files
from spec_tests.harness.export import indexed_weights, snapshot
from spec_tests.harness.ranks import SOON, run_ranks, values


def save_two_at_once(rank, world, impl, parent, order, shared):
    names = ("first", "second")
    models = {name: shard_whole(hf.llama(seed=seed)) for seed, name in enumerate(names)}
    pending = {}
    for number, name in enumerate(names):
        # Of another cut, so that a file of the one has no place in the other.
        size = (SMALL_FILES, 9_000)[number]
        where = parent / name if shared else parent / name / "model"
        pending[name] = impl.save_consolidated(models[name], where, max_shard_bytes=size, asynchronous=True)
    for name in order:
        pending[name].result()


@pytest.mark.clause("POST-010")
@pytest.mark.parametrize(
    ("order", "shared"), [(("first", "second"), False), (("second", "first"), True)], ids=["same names", "one parent"]
)
@pytest.mark.parametrize("world", [1, 2])
def test_two_saves_at_once_end_whole(impl, fresh_dir, world, order, shared):
    parent = fresh_dir()
    values(run_ranks(world, save_two_at_once, impl, parent, order, shared, timeout=2 * SOON))
    files = []
    for seed, name in enumerate(("first", "second")):
        directory = parent / name if shared else parent / name / "model"
        saved, live = indexed_weights(directory), hf.llama(seed=seed).state_dict()
        assert saved.keys() == live.keys()
        assert [key for key, tensor in live.items() if not torch.equal(saved[key], tensor)] == []
        assert json.loads((directory / "config.json").read_text())["model_type"] == "llama"
        assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []
        files.append(len(weights_files(directory)))
    assert files[0] < files[1]


@pytest.mark.clause("POST-010")
def test_two_saves_with_long_names_end_whole(impl, fresh_dir):
    # Of 255 bytes that a name may have, the first 250 are the same.
    parent = fresh_dir()
    places = [parent / ("run-" + "x" * 246 + end) for end in ("-a", "-b")]
    models = [hf.llama(seed=seed) for seed in (1, 2)]
    pending = [impl.save_consolidated(m, place, asynchronous=True) for m, place in zip(models, places, strict=True)]
    for one in pending:
        one.result()
    for model, place in zip(models, places, strict=True):
        assert torch.equal(indexed_weights(place)["lm_head.weight"], model.lm_head.weight)


WIDTH = 512  # a megabyte a tensor: writing takes longer than changing


def wide(tensors=6):
    model = nn.Module()
    for number in range(tensors):
        values_ = torch.full((WIDTH, WIDTH), float(number))
        if number % 3:
            model.register_parameter(f"weight{number}", nn.Parameter(values_))
        else:
            model.register_buffer(f"weight{number}", values_)
    model.config = hf.llama().config
    return model


def stage_of(model, rank, world):
    """The model without the tensors of the other ranks."""
    for at, (name, _) in enumerate([*model.named_parameters(), *model.named_buffers()]):
        if at % world != rank:
            delattr(model, name)
    return model


@torch.no_grad()
def save_and_train_on(rank, world, impl, directory, staged):
    model = stage_of(wide(), rank, world) if staged else shard_whole(wide())
    pending = impl.save_consolidated([model] if staged else model, directory, asynchronous=True)
    for tensor in reversed([*model.parameters(), *model.buffers()]):
        (tensor.to_local() if hasattr(tensor, "to_local") else tensor).fill_(-1.0)
    model.config.vocab_size += 8
    pending.result()


@pytest.mark.clause("POST-011")
@pytest.mark.parametrize(
    ("world", "staged"), [(1, False), (2, False), pytest.param(2, True, marks=pytest.mark.needs("model_parts"))]
)
def test_what_changes_after_the_call_is_not_saved(impl, fresh_dir, world, staged):
    directory = fresh_dir() / "model"
    values(run_ranks(world, save_and_train_on, impl, directory, staged, timeout=2 * SOON))
    saved = indexed_weights(directory)
    assert {name: tensor.unique().tolist() for name, tensor in saved.items()} == {
        f"weight{number}": [float(number)] for number in range(6)
    }
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == hf.VOCAB


@pytest.mark.clause("POST-010")
def test_second_call_for_a_result_touches_no_later_save(impl, fresh_dir):
    directory = fresh_dir() / "model"
    first = impl.save_consolidated(hf.llama(seed=0), directory, asynchronous=True)
    first.result()
    second = impl.save_consolidated(hf.llama(seed=1), directory, asynchronous=True)
    first.result()
    assert indexed_weights(directory)["lm_head.weight"].equal(hf.llama(seed=0).lm_head.weight)
    second.result()
    assert indexed_weights(directory)["lm_head.weight"].equal(hf.llama(seed=1).lm_head.weight)


@pytest.mark.clause("POST-005")
@pytest.mark.needs("save_consolidated", "asynchronous")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_metadata_of_an_earlier_save_goes_with_its_weights(impl, fresh_dir, asynchronous):
    original, directory, alone, model = fresh_dir(), fresh_dir() / "model", fresh_dir() / "model", hf.llama()
    (original / "config.json").write_text(model.config.to_json_string())
    impl.save_consolidated(model, directory, v4_compatible=True, original_model_path=str(original))
    for place in (directory, alone):
        if (pending := impl.save_consolidated(model, place, asynchronous=asynchronous)) is not None:
            pending.result()
    assert snapshot(directory) == snapshot(alone)


@pytest.mark.clause("POST-005")
@pytest.mark.needs("save_consolidated", "asynchronous")
@pytest.mark.parametrize(("first", "then"), [(9_000, 10**9), (10**9, 9_000)])
def test_weights_files_of_another_cut_go_in_the_background_too(impl, fresh_dir, first, then):
    directory, model = fresh_dir() / "model", hf.llama()
    for size in (first, then):
        impl.save_consolidated(model, directory, max_shard_bytes=size, asynchronous=True).result()
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert {path.name for path in weights_files(directory)} == set(index.values())
