# SPDX-License-Identifier: Apache-2.0
"""POST: whole checkpoints appear in one piece (spec/post_save.md)."""

from __future__ import annotations

import json
import shutil

import pytest
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.families import SMALL_FILES
from spec_tests.consumers import headers
from spec_tests.harness.export import INDEX_MAPPING, bring_out, indexed_weights, snapshot, stage_metadata
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks, values


@pytest.mark.clause("POST-005", "POST-007")
@pytest.mark.parametrize(("first", "then"), [(SMALL_FILES, 10**9), (10**9, SMALL_FILES)])
def test_weights_files_of_another_cut_go(impl, fresh_dir, first, then):
    directory, model = fresh_dir() / "model", hf.llama()
    for size in (first, then):
        impl.save_consolidated(model, directory, max_shard_bytes=size)
    index = headers.index(directory)["weight_map"]
    assert {path.name for path in directory.glob("*.safetensors")} == set(index.values())


@pytest.mark.clause("POST-005")
@pytest.mark.needs("consolidated")
def test_mapping_of_others_beside_the_weights_stays(impl, fresh_dir):
    staged, consolidated = fresh_dir(), fresh_dir()
    theirs = {INDEX_MAPPING: b'{"theirs": 1}', "fqn_to_dtype_mapping.json": b"{}", "notes.txt": b"mine"}
    for name, content in theirs.items():
        (consolidated / name).write_bytes(content)
    stage_metadata(impl, hf.llama(), staged)
    bring_out(impl, staged, consolidated)
    assert theirs.items() <= snapshot(consolidated).items()


def save_and_die(rank, world, impl, directory, width, moment):
    model = nn.Linear(width, 4)
    model.config = hf.llama().config
    model.config.hidden_size = width
    if moment:
        die_at(moment)
    impl.save_consolidated(model, directory)


def state_of(directory):
    """(width by the config, width of the weights), None for what is not there."""
    config, index = directory / "config.json", directory / "model.safetensors.index.json"
    said = json.loads(config.read_text())["hidden_size"] if config.exists() else None
    whole = index.exists() and all(
        (directory / name).exists() for name in json.loads(index.read_text())["weight_map"].values()
    )
    return said, indexed_weights(directory)["weight"].shape[1] if whole else None


@pytest.mark.clause("POST-007", "ERR-005")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier model", "first model"])
def test_killed_save_leaves_no_config_beside_other_weights(impl, fresh_dir, earlier):
    parent, moment, result = fresh_dir(), 0, None
    values(run_ranks(1, save_and_die, impl, parent / "earlier" / "model", 8, 0))
    while result is None or result.error_type is not None:
        moment += 2  # ERR-010 and `python -m spec_tests faults` take others
        directory = parent / str(moment) / "model"
        directory.parent.mkdir()
        if earlier:
            shutil.copytree(parent / "earlier" / "model", directory)
        (result,) = run_ranks(1, save_and_die, impl, directory, 16, moment)
        said, found = state_of(directory)
        assert said is None or said == found, (moment, said, found)
        if moment % 6 == 0:
            values(run_ranks(1, save_and_die, impl, directory, 16, 0))
            assert state_of(directory) == (16, 16)
            assert {path.name for path in directory.parent.iterdir()} == {"model"}
            assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        assert result.error_type in (None, "Exited")
    assert moment > 10


@pytest.mark.clause("POST-008")
def test_destination_is_untouched_until_the_result(impl, fresh_dir):
    directory = fresh_dir() / "model"
    impl.save_consolidated(hf.llama(seed=1), directory)
    before = snapshot(directory)
    pending = impl.save_consolidated(hf.llama(seed=2), directory, asynchronous=True)
    assert snapshot(directory) == before
    pending.result()
    assert snapshot(directory).keys() == before.keys()
    assert snapshot(directory) != before
