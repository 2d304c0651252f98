# SPDX-License-Identifier: Apache-2.0
"""CODE: custom model code (spec/custom_code.md)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given

from spec_tests.builders import hf
from spec_tests.harness.export import save_metadata, snapshot, stage_metadata
from spec_tests.strategies.code_trees import LINKS, NEAR_MISSES, CodeTree, Module, code_trees
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
CODE = {
    "modeling_x.py": b"from .parts.helper import y\n",
    "parts/__init__.py": b"",
    "parts/helper.py": b"from .inner.most import deep\ny = deep.z\n",
    "parts/inner/most/deep.py": b"z = 1\n",
}


def adapter_files(impl, directory, **save):
    return snapshot(save_metadata(impl, TREE.build(), directory, **save).directory)


def consolidated_files(impl, directory, **save):
    return snapshot(stage_metadata(impl, hf.llama(), directory, **save))


CONSOLIDATED = pytest.param(consolidated_files, marks=pytest.mark.needs("consolidated"), id="consolidated")
addons = pytest.mark.parametrize("files_of", [pytest.param(adapter_files, id="adapter"), CONSOLIDATED])


def written(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def own_code(files):
    """What is in the files beside JSON; implementations that leave an empty __init__.py out lose nothing."""
    return {"parts/__init__.py": b"", **code_in(files)}


def code_in(files):
    return {name: content for name, content in files.items() if not name.endswith(".json")}


@pytest.mark.clause("CODE-001")
@addons
def test_python_files_of_a_local_model_are_copied(impl, fresh_dir, files_of):
    original = written(fresh_dir(), {**CODE, "config.json": b"{}", "weights.safetensors": b"0", "merges.txt": b"a b"})
    (link := fresh_dir() / "current").symlink_to(original)
    for path in (str(original), f"{original}/", str(link)):
        assert own_code(files_of(impl, fresh_dir(), original_model_path=path)) == CODE


@pytest.mark.clause("CODE-001")
@addons
def test_package_with_code_in_its_init_file_is_copied(impl, fresh_dir, files_of):
    code = {**CODE, "parts/__init__.py": b"from .helper import y\n"}
    original = written(fresh_dir(), {**code, "config.json": b"{}"})
    assert code_in(files_of(impl, fresh_dir(), original_model_path=str(original))) == code


@pytest.mark.clause("CODE-001")
@addons
@pytest.mark.parametrize("original", [None, "org/model", "no/such/directory"])
def test_nothing_is_copied_without_a_local_model(impl, fresh_dir, files_of, original):
    assert code_in(files_of(impl, fresh_dir(), original_model_path=original)) == {}


@pytest.mark.clause("CODE-002")
@addons
def test_single_file_is_copied(impl, fresh_dir, files_of):
    original = written(fresh_dir(), CODE)
    copied = files_of(impl, fresh_dir(), original_model_path=str(original / "modeling_x.py"))
    assert code_in(copied) == {"modeling_x.py": CODE["modeling_x.py"]}


@pytest.mark.clause("CODE-002")
@addons
def test_single_file_of_another_kind_is_not_copied(impl, fresh_dir, files_of):
    original = written(fresh_dir(), {"model.safetensors": b"weights", "model.gguf": b"weights"})
    for name in ("model.safetensors", "model.gguf"):
        assert code_in(files_of(impl, fresh_dir(), original_model_path=str(original / name))) == {}


FOREIGN = {
    ".git/hooks/hook.py": b"",
    ".hidden.py": b"",
    "__pycache__/modeling_x.cpython-311.py": b"",
    "venv/pyvenv.cfg": b"",
    "conda/conda-meta/history": b"",
    "conda/lib/tool.py": b"x = 1\n",
    "venv/lib/site.py": b"",
    "step-100/config.json": b"{}",
    "step-100/modeling_x.py": b"older",
    "step-100/adapter/adapter_config.json": b"{}",
    "runs/adapter/adapter_config.json": b"{}",
    "runs/adapter/modeling_x.py": b"older",
}


@pytest.mark.clause("CODE-003")
@addons
def test_what_is_no_part_of_the_model_is_not_copied(impl, fresh_dir, files_of):
    original = written(fresh_dir(), {**CODE, **FOREIGN, "config.json": b"{}"})
    assert own_code(files_of(impl, fresh_dir(), original_model_path=str(original))) == CODE


@pytest.mark.clause("CODE-003")
@addons
@pytest.mark.parametrize("place", ["checkpoints/new", "new", "."])
def test_saving_into_the_original_again_adds_nothing(impl, fresh_dir, files_of, place):
    original = written(fresh_dir(), {**CODE, "config.json": b"{}"})
    (original / place).mkdir(parents=True, exist_ok=True)
    first = files_of(impl, original / place, original_model_path=str(original))
    for _ in range(2):
        again = files_of(impl, original / place, original_model_path=str(original))
    assert again == first
    assert own_code({name: content for name, content in first.items() if name.endswith(".py")}) == CODE


@pytest.mark.clause("CODE-004")
@addons
def test_links_out_of_the_folder_are_not_followed(impl, fresh_dir, files_of):
    files = {"secret.txt": b"secret", "code/x.py": b"x", "blobs/sha": b"another model's"}
    outside, original = written(fresh_dir(), files), written(fresh_dir(), CODE)
    (original / "of_another_cache.py").symlink_to(outside / "blobs" / "sha")
    (original / "evil.py").symlink_to(outside / "secret.txt")
    (original / "evil_relative.py").symlink_to(Path(os.path.relpath(outside / "code" / "x.py", original)))
    (original / "tree").symlink_to(outside / "code", target_is_directory=True)
    (original / "dangling.py").symlink_to("nowhere.py")
    (original / "loop").symlink_to(original, target_is_directory=True)
    assert own_code(files_of(impl, fresh_dir(), original_model_path=str(original))) == CODE


@pytest.mark.clause("CODE-004")
@addons
def test_links_inside_and_of_the_hub_cache_are_copied_as_files(impl, fresh_dir, files_of):
    cache = fresh_dir()
    blobs = written(cache / "blobs", {f"sha{number}": content for number, content in enumerate(CODE.values())})
    snapshot_dir = cache / "snapshots" / "revision"
    for number, name in enumerate(CODE):
        (snapshot_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot_dir / name).symlink_to(os.path.relpath(blobs / f"sha{number}", (snapshot_dir / name).parent))
    (snapshot_dir / "alias.py").symlink_to("modeling_x.py")
    destination = fresh_dir()
    copied = own_code(files_of(impl, destination, original_model_path=str(snapshot_dir)))
    assert copied == {**CODE, "alias.py": CODE["modeling_x.py"]}
    assert not any((destination / name).is_symlink() for name in copied)


@pytest.mark.clause("CODE-004")
@addons
def test_copies_of_read_only_files_are_writable(impl, fresh_dir, files_of):
    original, destination = written(fresh_dir(), CODE), fresh_dir()
    for name in CODE:
        (original / name).chmod(0o444)
    for _ in range(2):
        files_of(impl, destination, original_model_path=str(original))
    copied = [path for path in destination.rglob("*.py") if path.is_file()]
    assert {"modeling_x.py", "helper.py", "deep.py"} <= {path.name for path in copied}
    assert all(path.stat().st_mode & stat.S_IWUSR for path in copied)


@pytest.mark.clause("CODE-003", "CODE-004")
@given(tree=code_trees())
@example(tree=CodeTree((Module("m_a.py"),), others=("venv/lib/python3.11/site-packages/pkg/mod.py",)))
@example(tree=CodeTree((Module("m_a.py"),), links=("outside",)))
def test_any_folder_gives_its_own_code_and_nothing_else(impl, fresh_dir, tree):
    folder = tree.build(fresh_dir())
    copied = code_in(adapter_files(impl, fresh_dir(), original_model_path=str(folder)))
    own = {module.path: module.source() for module in tree.modules if module.place != "outside"}
    # Implementations need not copy code that nothing reaches.
    assert all(copied[path] == own[path] for path in tree.needed_by_auto_map() if path in own)
    foreign = (".", "__", "consolidated/") if "consolidated/config.json" in tree.others else (".", "__")
    near = {path for path in NEAR_MISSES if path.endswith(".py") and not path.startswith(foreign)}
    assert set(copied) <= own.keys() | near | {LINKS["inside"]}
    outside = {module.source() for module in tree.modules if module.place == "outside"} | {b"shared = True\n"}
    assert outside.isdisjoint(copied.values())
