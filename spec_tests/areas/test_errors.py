"""ERR: errors and interrupted saves (spec/errors.md)."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spec_tests.builders.tokenizers import FailingTokenizer, tokenizer
from spec_tests.harness.export import WEIGHTS, error_of, refusal, save_metadata, snapshot, text_of
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))


def no_lora(impl, directory):
    save_metadata(impl, TreeSpec((Leaf("q", "none"),)).build(), directory)


def failing_tokenizer(impl, directory):
    save_metadata(impl, TREE.build(), directory, tokenizer=FailingTokenizer())


def unwritable_value(impl, directory):
    save_metadata(impl, TREE.build(), directory, impl.peft_config(dim=4, alpha=8, setting=object()))


def file_in_the_way(impl, directory):
    original = directory.parent / f"{directory.name}-original"
    (original / "notes.txt").mkdir(parents=True)
    (original / "notes.txt" / "code.py").write_text("x = 1")
    save_metadata(impl, TREE.build(), directory, original_model_path=str(original))


def directory_in_the_way(impl, directory):
    (directory / "adapter_config.json").unlink()
    (directory / "adapter_config.json").mkdir()
    save_metadata(impl, TREE.build(), directory, impl.peft_config(dim=4, alpha=8, setting="new"))


@pytest.mark.clause("ERR-001")
@pytest.mark.parametrize("fail", [no_lora, failing_tokenizer, unwritable_value, file_in_the_way, directory_in_the_way])
def test_failed_save_leaves_the_files_before_it(impl, fresh_dir, fail):
    directory = fresh_dir()
    save_metadata(impl, TREE.build(), directory, tokenizer=tokenizer())
    (directory / "notes.txt").write_text("the user's own")
    before = snapshot(directory)
    assert error_of(lambda: fail(impl, directory)) is not None
    after = snapshot(directory)
    if fail is directory_in_the_way:
        del before["adapter_config.json"], after["adapter_config.json/"]
    assert after == before


@pytest.mark.clause("ERR-002")
@pytest.mark.parametrize("below", ["", "below/it"])
def test_file_in_place_of_the_directory_is_named(impl, fresh_dir, below):
    file = fresh_dir() / "a-file"
    file.write_text("content")
    error = error_of(lambda: save_metadata(impl, TREE.build(), file / below))
    assert isinstance(error, OSError), error
    assert str(file) in text_of(error)
    assert file.read_text() == "content"


def save_as_nobody(rank, world, impl, directory):
    if os.geteuid() == 0:
        os.setuid(65534)
    error = error_of(lambda: save_metadata(impl, TREE.build(), directory))
    return isinstance(error, OSError), text_of(error)


@pytest.mark.clause("ERR-002")
@pytest.mark.skipif(sys.platform == "win32", reason="permissions of directories are POSIX")
def test_directory_without_permission_is_named(impl, tmp_path_factory):
    directory = tmp_path_factory.mktemp("locked")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o555)
    try:
        ((is_os_error, text),) = values(run_ranks(1, save_as_nobody, impl, directory))
    finally:
        for path in (directory, *directory.parents[:2]):
            path.chmod(0o700)
    assert is_os_error, text
    assert str(directory) in text
    assert snapshot(directory) == {}


class Probe(dict):
    """A setting that looks at the checkpoint directory each time something reads it."""

    def __init__(self, directory):
        super().__init__(inner=1)
        self.directory = directory
        self.seen = []

    def items(self):
        self.seen.append(snapshot(self.directory))
        return super().items()


class ProbingTokenizer:
    """Writes half a file, looks, and writes the other half."""

    def __init__(self, directory):
        self.directory = directory
        self.seen = []

    def save_pretrained(self, directory):
        path = Path(directory) / "tokenizer_config.json"
        with path.open("w") as file:
            file.write('{"half": ')
            file.flush()
            self.seen.append(snapshot(self.directory))
            file.write("2}")


FINAL_NAMES = ("adapter_config.json", "automodel_peft_config.json", "tokenizer_config.json")


@pytest.mark.clause("ERR-003")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier save", "first save"])
def test_reader_finds_whole_files_while_a_save_is_running(impl, fresh_dir, earlier):
    directory = fresh_dir()
    if earlier:
        old = impl.peft_config(dim=4, alpha=8, setting={"inner": 0})
        save_metadata(impl, TREE.build(), directory, old, tokenizer=tokenizer())
    before = snapshot(directory)
    probe, probing = Probe(directory), ProbingTokenizer(directory)
    config = impl.peft_config(dim=4, alpha=16, setting=probe)
    save_metadata(impl, replace(TREE, alpha=16).build(), directory, config, tokenizer=probing)
    after = snapshot(directory)
    assert probe.seen
    assert probing.seen
    for seen in probe.seen + probing.seen:
        for name in FINAL_NAMES:
            assert seen.get(name) in (None, before.get(name), after.get(name)), name
    assert after != before


def save_and_die(rank, world, impl, directory, alpha, moment):
    """Save the adapter of ``alpha``: its weights and its config are both other than those of another alpha."""
    model = replace(TREE, alpha=alpha).build()
    with torch.no_grad():
        model.get_submodule("model.layers.0.q_proj").lora_B.weight.fill_(alpha)
    if moment:
        die_at(moment)
    impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=alpha), tokenizer=tokenizer())


def state_of(directory):
    """(alpha by the config, alpha by the tensors), None for what is not there."""
    marker, weights = directory / "adapter_config.json", directory / WEIGHTS
    said = json.loads(marker.read_text())["lora_alpha"] if marker.exists() else None
    tensors = load_file(weights) if weights.exists() else {}
    return said, next((float(tensor[0, 0]) for key, tensor in tensors.items() if "lora_B" in key), None)


@pytest.mark.clause("ERR-004", "ERR-005")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier adapter", "first adapter"])
def test_killed_save_leaves_no_marker_beside_other_weights(impl, fresh_dir, earlier):
    parent, moment, result = fresh_dir(), 0, None
    values(run_ranks(1, save_and_die, impl, parent / "clean" / "adapter", 4, 0))
    values(run_ranks(1, save_and_die, impl, parent / "earlier" / "adapter", 2, 0))
    while result is None or result.error_type is not None:
        moment += 2  # ERR-010 and `python -m spec_tests faults` take others
        directory = parent / str(moment) / "adapter"
        directory.parent.mkdir()
        if earlier:
            shutil.copytree(parent / "earlier" / "adapter", directory)
        (result,) = run_ranks(1, save_and_die, impl, directory, 4, moment)
        assert result.error_type in (None, "Exited")
        said, found = state_of(directory)
        assert said is None or said == found, (moment, said, found)
        if moment % 6 == 0 or result.error_type is None:
            values(run_ranks(1, save_and_die, impl, directory, 4, 0))
            assert snapshot(directory.parent) == snapshot(parent / "clean")
    assert moment > 5


@pytest.mark.clause("ERR-005", "ERR-001")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier adapter", "first adapter"])
def test_failed_save_adapter_leaves_nothing_behind(impl, fresh_dir, earlier):
    parent = fresh_dir()
    config = impl.peft_config(dim=4, alpha=8)
    if earlier:
        impl.save_adapter(TREE.build(), parent / "adapter", config)
    failing = FailingTokenizer()
    refusal(
        lambda: impl.save_adapter(TREE.build(), parent / "adapter", config, tokenizer=failing), parent, kinds=Exception
    )


@pytest.mark.clause("ERR-005")
def test_directories_above_a_failed_save_go_again(impl, fresh_dir):
    parent, config = fresh_dir(), impl.peft_config(dim=4, alpha=8)
    place, failing = parent / "run" / "step_1" / "adapter", FailingTokenizer()
    refusal(lambda: impl.save_adapter(TREE.build(), place, config, tokenizer=failing), parent, kinds=Exception)
    assert list(parent.iterdir()) == []


def save_under(rank, world, impl, directory, mask):
    os.umask(mask)
    impl.save_adapter(TREE.build(), directory, impl.peft_config(dim=4, alpha=8), tokenizer=tokenizer())


@pytest.mark.clause("ERR-006")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(impl, fresh_dir, mask):
    directory = fresh_dir() / "adapter"
    values(run_ranks(1, save_under, impl, directory, mask))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}
    assert WEIGHTS in modes
