# SPDX-License-Identifier: Apache-2.0
"""POST for what else is in the destination: a user's files, a checkpoint of the other kind (spec/post_save.md)."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.harness.export import error_of, refusal

LLAMA = TRAINED["llama"]
USERS = (
    "modelling.safetensors",
    "model_ema.safetensors",
    "model-best.safetensors",
    "model-1-of-2.safetensors",
    "model-00001-of-00002.safetensors.bak",
    "my-model-00001-of-00002.safetensors",
    "notes/model.safetensors",
)


def save_adapter(impl, directory, **more):
    impl.save_adapter(LLAMA.trained(impl.adapters), directory, LLAMA.peft_config(impl.peft_config), **more)


@pytest.mark.clause("POST-012")
@pytest.mark.needs("save_consolidated")
def test_files_of_similar_names_stay(impl, fresh_dir):
    directory = fresh_dir()
    for name in USERS:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"the user's")
    for _ in range(2):
        impl.save_consolidated(hf.llama(), directory)
    assert {name: (directory / name).read_bytes() for name in USERS} == dict.fromkeys(USERS, b"the user's")


@pytest.mark.clause("POST-005")
@pytest.mark.needs("save_adapter")
def test_file_where_the_checkpoint_has_a_directory_is_not_lost(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "out"
    (original / "layers").mkdir()
    (original / "modeling_x.py").write_text("from .layers.attention import y\n")
    (original / "layers" / "attention.py").write_text("y = 1\n")
    save_adapter(impl, directory)
    (directory / "layers").write_text("the user's")
    error = error_of(lambda: save_adapter(impl, directory, original_model_path=str(original)))
    assert (directory / "layers").read_text() == "the user's"
    assert error is not None


@pytest.mark.clause("POST-013")
@pytest.mark.needs("save_adapter")
@pytest.mark.parametrize(
    "held", ["config.json", "model.safetensors", "model-00001-of-00003.safetensors", "model.safetensors.index.json"]
)
def test_adapter_into_a_model_is_refused(impl, fresh_dir, held):
    directory = fresh_dir()
    (directory / held).write_text("{}")
    refusal(lambda: save_adapter(impl, directory), directory, naming=[str(directory), held])


@pytest.mark.clause("POST-013")
@pytest.mark.needs("save_adapter", "save_consolidated")
def test_model_into_an_adapter_is_refused(impl, fresh_dir):
    directory = fresh_dir() / "adapter"
    save_adapter(impl, directory)
    refusal(lambda: impl.save_consolidated(hf.llama(), directory), directory, naming="adapter_config.json")


@pytest.mark.clause("POST-013")
@pytest.mark.needs("save_adapter", "save_consolidated")
def test_each_may_be_saved_again_where_it_is(impl, fresh_dir):
    adapter, model = fresh_dir() / "adapter", fresh_dir() / "model"
    for _ in range(2):
        save_adapter(impl, adapter)
        impl.save_consolidated(hf.llama(), model)
    assert (adapter / "adapter_config.json").exists()
    assert (model / "config.json").exists()


@pytest.mark.clause("POST-014")
@pytest.mark.needs("save_adapter")
@pytest.mark.skipif(sys.platform == "win32", reason="modes and links are POSIX")
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2775], ids=oct)
def test_directory_keeps_its_mode(impl, fresh_dir, mode):
    directory = fresh_dir()
    save_adapter(impl, directory)
    directory.chmod(mode)
    save_adapter(impl, directory)
    assert oct(stat.S_IMODE(directory.stat().st_mode)) == oct(mode)


@pytest.mark.clause("POST-014")
@pytest.mark.needs("save_adapter")
@pytest.mark.skipif(sys.platform == "win32", reason="modes and links are POSIX")
@pytest.mark.parametrize("exists", [True, False], ids=["to a directory", "to nothing yet"])
def test_link_stays_and_leads_to_the_checkpoint(impl, fresh_dir, exists):
    parent = fresh_dir()
    if exists:
        (parent / "run-1").mkdir()
    (parent / "latest").symlink_to("run-1")
    for _ in range(2):
        save_adapter(impl, parent / "latest")
    assert (parent / "latest").is_symlink()
    assert (parent / "run-1" / "adapter_config.json").is_file()
    assert sorted(path.name for path in parent.iterdir()) == ["latest", "run-1"]


def another_group(directory):
    """A group of which this process is, or to which it may give away, other than the directory's own."""
    own = directory.stat().st_gid
    return next((group for group in (*os.getgroups(), own + 1 if os.geteuid() == 0 else own) if group != own), None)


@pytest.mark.clause("POST-014")
@pytest.mark.needs("save_adapter")
@pytest.mark.skipif(sys.platform == "win32", reason="groups are POSIX")
def test_directory_keeps_its_group(impl, fresh_dir):
    directory = fresh_dir()
    if (group := another_group(directory)) is None:
        pytest.skip("this process has one group, and no right to give to another")
    save_adapter(impl, directory)
    os.chown(directory, -1, group)
    directory.chmod(0o750)
    save_adapter(impl, directory)
    assert (directory.stat().st_gid, oct(stat.S_IMODE(directory.stat().st_mode))) == (group, oct(0o750))


@pytest.mark.clause("POST-014")
@pytest.mark.needs("save_adapter")
@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_directory_inside_the_checkpoint_keeps_its_mode(impl, fresh_dir):
    directory, tokens, spec = fresh_dir(), tokenizer(), TRAINED["llama"]
    tokens.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    impl.save_adapter(model, directory, config, tokenizer=tokens)
    inside = [path for path in directory.iterdir() if path.is_dir()]
    for path in inside:
        path.chmod(0o750)
    impl.save_adapter(model, directory, config, tokenizer=tokens)
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in inside} <= {oct(0o750)}
