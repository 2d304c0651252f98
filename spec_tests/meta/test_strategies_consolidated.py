# SPDX-License-Identifier: Apache-2.0
"""The strategies for configs and for folders of code: that what they expect is what Python and transformers do."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings

from spec_tests.strategies import code_trees, configs
from spec_tests.strategies.code_trees import CodeTree, Import, Module
from spec_tests.strategies.configs import ConfigSpec, Given

_COUNT = itertools.count()
FEW = settings(max_examples=25)


class TestConfigs:
    @FEW
    @given(spec=configs.configs(values=configs.plain_values()))
    def test_transformers_writes_plain_values_as_expected(self, spec: ConfigSpec) -> None:
        config = spec.build()
        text = json.dumps(config) if spec.form == "frozen" else config.to_json_string()
        assert configs.same_json(spec.found_in(json.loads(text)), spec.expected())

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("depth", [0, 3])
    def test_transformers_writes_non_finite_floats_as_expected(self, value: float, depth: int) -> None:
        spec = ConfigSpec(extra={"x_float": configs.deep(depth, Given(value, configs.non_finite(value)))})
        assert configs.same_json(spec.found_in(json.loads(spec.build().to_json_string())), spec.expected())

    @FEW
    @given(spec=configs.configs())
    def test_forms_are_what_they_are_called(self, spec: ConfigSpec) -> None:
        config = spec.build()
        assert isinstance(config, dict) == (spec.form == "frozen")
        assert isinstance(config, transformers.PretrainedConfig) == (spec.form != "frozen")
        inner = getattr(config, "text_config", None)
        assert isinstance(inner, transformers.PretrainedConfig) == (spec.form == "nested")
        assert isinstance(inner, dict) == (spec.form == "nested_dict")
        assert set(spec.expected()) - {"text_config"} == set(spec.extra)
        assert configs.same_json(json.loads(json.dumps(spec.expected())), spec.expected())

    def test_settings_collide_with_none_of_a_config(self) -> None:
        taken = set(dir(transformers.LlamaConfig())) | set(dir(transformers.LlavaConfig()))
        assert not [name for name in taken if name.startswith("x_")]

    def test_every_kind_of_value_is_drawn(self) -> None:
        kinds = {type(value) for drawn in _drawn(configs.config_values()) for value in _values(drawn.value)}
        scalars = {type(None), bool, int, float, str, torch.dtype, type(Path())}
        assert kinds >= scalars | {set, frozenset, tuple, dict, list, configs.Scheme, configs.Level, configs.Mode}

    def test_every_form_is_drawn(self) -> None:
        assert {spec.form for spec in _drawn(configs.configs(), 50)} == set(configs.FORMS)

    def test_sets_are_expected_in_their_own_order(self) -> None:
        sets = [one for one in _drawn(configs.python_values(), 300) if isinstance(one.value, (set, frozenset))]
        assert all(one.json == sorted(one.json) for one in sets)
        assert [one for one in sets if one.json != sorted(one.json, key=str)]

    def test_same_json_tells_apart_what_equality_does_not(self) -> None:
        assert not configs.same_json(1, True)
        assert not configs.same_json(1, 1.0)
        assert configs.same_json({"b": [math.nan], "a": 1}, {"a": 1, "b": [math.nan]})

    def test_deep_values_are_as_deep_as_asked(self) -> None:
        given_ = configs.deep(300, Given({1}, [1]))
        value, plain, levels = given_.value, given_.json, 0
        while not isinstance(value, set):
            key: Any = 0 if isinstance(value, list) else "in"
            value, plain, levels = value[key], plain[key], levels + 1
        assert (levels, plain) == (300, [1])


def _drawn(strategy: Any, examples: int = 200) -> list[Any]:
    found = []

    @settings(max_examples=examples, database=None, derandomize=True)
    @given(strategy)
    def collect(one: Any) -> None:
        found.append(one)

    collect()
    return found


def _values(value: Any) -> list[Any]:
    """The value and everything in it."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return [value, *(one for item in inside for one in _values(item))]


class TestCodeTrees:
    @FEW
    @given(tree=code_trees.code_trees())
    def test_python_loads_exactly_what_is_needed(self, tree: CodeTree) -> None:
        with tempfile.TemporaryDirectory() as directory:
            folder = tree.build(Path(directory))
            assert _loaded(folder, tree) == tree.needed_by_auto_map()

    @FEW
    @given(tree=code_trees.code_trees())
    def test_a_built_folder_holds_what_the_description_says(self, tree: CodeTree) -> None:
        with tempfile.TemporaryDirectory() as directory:
            folder = tree.build(Path(directory))
            assert {path: (folder / path).read_bytes() for path in tree.contents()} == tree.contents()
            assert len(set(tree.contents().values())) == len(tree.modules)
            assert set(tree.needed_by_auto_map()) <= set(tree.contents())
            assert json.loads((folder / "config.json").read_text())["auto_map"] == tree.auto_map()
            assert all((folder / path).is_file() for path in tree.others)
            assert all((folder / code_trees.LINKS[kind]).is_symlink() for kind in tree.links)
            for module in tree.modules:
                assert (folder / module.path).is_symlink() == (module.place != "here")

    def test_links_lead_where_their_kind_says(self, tmp_path: Path) -> None:
        tree = CodeTree((Module("m_a.py"),), links=tuple(code_trees.LINKS))
        folder = tree.build(tmp_path)
        at = {kind: folder / path for kind, path in code_trees.LINKS.items()}
        assert at["inside"].resolve() == folder / "m_a.py"
        assert at["outside"].is_file()
        assert folder not in at["outside"].resolve().parents
        assert (at["outside_directory"] / "shared.py").is_file()
        assert not at["dangling"].exists()
        with pytest.raises(OSError, match="ymbolic link"):
            at["itself"].open()
        assert (at["loop"] / "link_loop" / "m_a.py").is_file()
        assert (at["up"] / folder.name / "m_a.py").is_file()

    def test_blobs_are_kept_as_the_hub_cache_keeps_them(self, tmp_path: Path) -> None:
        tree = CodeTree((Module("m_a.py", place="blob"), Module("m_p/m_b.py", place="outside")))
        folder = tree.build(tmp_path)
        target = (folder / "m_a.py").readlink()
        assert target.parts[:3] == ("..", "..", "blobs")
        assert len(target.name) == 64
        assert (folder / "m_p" / "m_b.py").resolve() == tmp_path / "elsewhere" / "m_p" / "m_b.py"

    def test_needed_files_follow_chains_cycles_and_packages(self) -> None:
        tree = CodeTree(
            (
                Module("m_a.py", (Import("m_p/m_q/m_b.py"),)),
                Module("m_p/m_q/m_b.py", (Import("m_p/m_c.py", "later"), Import("m_a.py", "later"))),
                Module("m_p/m_c.py"),
                Module("m_p/__init__.py", (Import("m_d.py", "later"),)),
                Module("m_d.py"),
                Module("m_e.py", (Import("m_a.py"),)),
            ),
            entries=(("AutoModel", "m_a.py"),),
        )
        assert tree.needed_by_auto_map() == ["m_a.py", "m_d.py", "m_p/__init__.py", "m_p/m_c.py", "m_p/m_q/m_b.py"]

    def test_a_tokenizer_is_named_as_one_of_two(self) -> None:
        tree = CodeTree((Module("m_a.py"),), entries=(("AutoTokenizer", "m_a.py"), ("AutoConfig", "m_a.py")))
        assert tree.auto_map() == {"AutoTokenizer": [None, "m_a.Tokenizer"], "AutoConfig": "m_a.Config"}

    def test_every_manner_place_and_depth_is_drawn(self) -> None:
        trees = _drawn(code_trees.code_trees(), 60)
        modules = [module for tree in trees for module in tree.modules]
        assert {one.how for module in modules for one in module.imports} == set(code_trees.HOW)
        assert {module.place for module in modules} == {"here", "blob", "outside"}
        assert {module.path.count("/") for module in modules} == {0, 1, 2}
        assert len({path for tree in trees for path in tree.others}) >= 12
        assert {kind for tree in trees for kind in tree.links} == set(code_trees.LINKS)
        assert max(len(tree.needed_by_auto_map()) for tree in trees) > 3
        assert [tree for tree in trees if set(tree.needed_by_auto_map()) < set(tree.contents())]


def _loaded(folder: Path, tree: CodeTree) -> list[str]:
    """Import the entries as a package's modules, with all that they import later; the paths of what was loaded."""
    package = f"code_tree_{next(_COUNT)}"
    (folder.parent / package).symlink_to(folder)
    sys.path.insert(0, str(folder.parent))
    sys.dont_write_bytecode, written = True, sys.dont_write_bytecode
    importlib.invalidate_caches()
    done: set[str] = set()
    try:
        for _, path in tree.entries:
            importlib.import_module(f"{package}.{Path(path).stem}")
        while ready := {name for name in _ours(package) if name not in done and hasattr(sys.modules[name], "later")}:
            for name in sorted(ready):
                sys.modules[name].later()
            done |= ready
        paths = [str(sys.modules[name].__file__) for name in done]
        return sorted(path.partition(f"/{package}/")[2] for path in paths)
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(folder.parent))
        for name in _ours(package):
            del sys.modules[name]


def _ours(package: str) -> list[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
