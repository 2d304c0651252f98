"""ERR: errors and interrupted saves (spec/errors.md)."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spec_tests.builders.tokenizers import FailingTokenizer, tokenizer
from spec_tests.harness.export import WEIGHTS, error_of, save_metadata, snapshot, text_of
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))


def no_lora(impl, directory):
    save_metadata(impl, TreeSpec((Leaf("q", "none"),)).build(), directory)


def failing_tokenizer(impl, directory):
    save_metadata(impl, TREE.build(), directory, tokenizer=FailingTokenizer())


def unwritable_value(impl, directory):
    save_metadata(impl, TREE.build(), directory, impl.peft_config(dim=4, alpha=8, setting=object()))


def directory_in_the_way(impl, directory):
    (directory / "adapter_config.json").unlink()
    (directory / "adapter_config.json").mkdir()
    save_metadata(impl, TREE.build(), directory, impl.peft_config(dim=4, alpha=8, setting="new"))


@pytest.mark.clause("ERR-001")
@pytest.mark.parametrize("fail", [no_lora, failing_tokenizer, unwritable_value, directory_in_the_way])
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
    save_metadata(impl, TREE.build(), directory, config, tokenizer=probing)
    after = snapshot(directory)
    assert probe.seen
    assert probing.seen
    for seen in probe.seen + probing.seen:
        for name in FINAL_NAMES:
            assert seen.get(name) in (None, before.get(name), after[name]), name
    assert after != before


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "shutil.rmtree"}


def save_and_die(rank, world, impl, directory, rank_of_lora, moment):
    """Save; the process is gone, without a word, at its ``moment``-th step on the file system."""
    left = [moment]

    def die(event, arguments):
        if event in EVENTS and (event != "open" or _writes(arguments)):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

    model = replace(TREE, rank=rank_of_lora).build()
    config = impl.peft_config(dim=rank_of_lora, alpha=8)
    if moment:
        sys.addaudithook(die)
    impl.save_adapter(model, directory, config)


def _writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return (isinstance(mode, str) and bool(set(mode) & set("wxa+"))) or bool(flags & (os.O_WRONLY | os.O_RDWR))


def state_of(directory):
    """(rank by the config, rank of the tensors), None for what is not there."""
    from safetensors.torch import load_file

    marker, weights = directory / "adapter_config.json", directory / WEIGHTS
    config = json.loads(marker.read_text())["r"] if marker.exists() else None
    tensors = load_file(weights) if weights.exists() else {}
    return config, next((tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key), None)


@pytest.mark.clause("ERR-004", "ERR-005")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier adapter", "first adapter"])
def test_killed_save_leaves_no_marker_beside_other_weights(impl, fresh_dir, earlier):
    parent, moments = fresh_dir(), 0
    for moment in range(1, 200):
        directory = parent / str(moment) / "adapter"
        directory.parent.mkdir()
        if earlier:
            values(run_ranks(1, save_and_die, impl, directory, 2, 0))
        (result,) = run_ranks(1, save_and_die, impl, directory, 4, moment)
        said, found = state_of(directory)
        assert said is None or said == found, (moment, said, found)
        values(run_ranks(1, save_and_die, impl, directory, 4, 0))
        assert state_of(directory) == (4, 4)
        assert sorted(snapshot(directory.parent)) == [
            f"adapter/{name}" for name in ("adapter_config.json", WEIGHTS, "automodel_peft_config.json")
        ]
        if result.error_type is None:
            break
        assert result.error_type == "Exited"
        moments = moment
    assert moments >= 5


@pytest.mark.clause("ERR-005", "ERR-001")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier adapter", "first adapter"])
def test_failed_save_adapter_leaves_nothing_behind(impl, fresh_dir, earlier):
    parent = fresh_dir()
    config = impl.peft_config(dim=4, alpha=8)
    if earlier:
        impl.save_adapter(TREE.build(), parent / "adapter", config)
    before = snapshot(parent)
    assert error_of(lambda: impl.save_adapter(TREE.build(), parent / "adapter", config, tokenizer=FailingTokenizer()))
    assert snapshot(parent) == before


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
