"""HOOK: the hooks' interface (spec/hooks.md)."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from spec_tests.builders.catalogue import TRAINED, cases, tagged
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import (
    WRONG_VALUE,
    hook_files,
    refusal,
    run_hook,
    same_numbers,
    save_metadata,
    snapshot,
    spelled,
)
from spec_tests.strategies.trees import Leaf, TreeSpec
from spec_tests.strategies.unordered import save_some_names

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))


def keywords(impl, directory):
    return {
        "model_path": str(directory),
        "model_state": impl.model_state(TREE.build(), is_peft=True),
        "peft_config": impl.peft_config(dim=4, alpha=8),
        "tokenizer": tokenizer(),
        "original_model_path": None,
        "v4_compatible": False,
    }


@pytest.mark.clause("HOOK-001")
@pytest.mark.parametrize("hook", ["pre_save", "post_save"])
def test_hook_takes_keywords_and_returns_none(impl, fresh_dir, hook):
    parameters = inspect.signature(getattr(impl.peft_addon(), hook)).parameters.values()
    assert {one.kind for one in parameters} <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    assert run_hook(impl, hook, **keywords(impl, fresh_dir())) is None


@pytest.mark.clause("HOOK-002")
def test_pre_save_writes_metadata_and_no_weights(impl, fresh_dir):
    directory = fresh_dir()
    run_hook(impl, "pre_save", **{**keywords(impl, directory), "tokenizer": None})
    assert sorted(snapshot(directory)) == hook_files(impl)


@pytest.mark.clause("HOOK-003")
def test_unknown_keywords_change_nothing(impl, fresh_dir):
    plain, superset = fresh_dir(), fresh_dir()
    run_hook(impl, "pre_save", **keywords(impl, plain))
    more = {
        "hf_metadata_dir": str(superset / "elsewhere"),
        "consolidated_path": None,
        "fqn_to_file_index_mapping": {"a": 1},
        "an_option_of_tomorrow": object(),
    }
    run_hook(impl, "pre_save", **keywords(impl, superset), **more)
    assert snapshot(superset) == snapshot(plain)


@pytest.mark.clause("HOOK-004")
@pytest.mark.parametrize("name", ["model_path", "model_state", "peft_config"])
def test_missing_required_keyword_is_named(impl, fresh_dir, name):
    directory = fresh_dir()
    save = keywords(impl, directory)
    del save[name]
    refusal(
        lambda: run_hook(impl, "pre_save", **save),
        directory,
        naming=spelled(impl, "PeftAddon.pre_save", name),
        kinds=(KeyError, TypeError, ValueError),
    )


@pytest.mark.clause("HOOK-005")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_path", 7),
        ("model_path", ""),
        ("model_path", None),
        ("model_state", None),
        ("peft_config", None),
        ("model_state", nn.Linear(2, 2)),
        ("model_state", "state"),
        ("peft_config", {"dim": 4}),
        ("peft_config", 4),
        ("tokenizer", "org/tokenizer"),
        ("original_model_path", 3.5),
        ("v4_compatible", "no"),
        ("process_group", "world"),
        ("peft_config", SimpleNamespace(dim=4)),
        ("model_state", SimpleNamespace(model=["weights"])),
    ],
)
def test_wrong_typed_keyword_is_named(impl, fresh_dir, monkeypatch, name, value):
    monkeypatch.chdir(fresh_dir())  # where an empty path leads
    directory = fresh_dir()
    refusal(
        lambda: run_hook(impl, "pre_save", **{**keywords(impl, directory), name: value}),
        directory,
        naming=spelled(impl, "PeftAddon.pre_save", name),
        kinds=WRONG_VALUE,
    )


@pytest.mark.clause("HOOK-006")
def test_post_save_changes_nothing(impl, fresh_dir):
    directory = fresh_dir()
    run_hook(impl, "pre_save", **keywords(impl, directory))
    before = snapshot(directory)
    run_hook(impl, "post_save", **keywords(impl, directory))
    assert before
    assert snapshot(directory) == before


@pytest.mark.clause("HOOK-007")
@pytest.mark.parametrize("kinds", [("compile",), ("checkpoint",), ("checkpoint", "compile")], ids="+".join)
@pytest.mark.parametrize("kind", cases(["llama", "qwen3_moe_fused", "qwen3_moe_v4"]))
def test_wrapped_root_gives_the_files_of_the_bare_model(impl, fresh_dir, kind, kinds):
    spec = TRAINED[kind]
    model = spec.trained(impl.adapters)
    bare = save_metadata(impl, model, fresh_dir(), spec.peft_config(impl.peft_config), **spec.save)
    for wrapper in kinds:
        model = wrap(model, "", wrapper)
    wrapped = save_metadata(impl, model, fresh_dir(), spec.peft_config(impl.peft_config), **spec.save)
    assert snapshot(wrapped.directory) == snapshot(bare.directory)


@pytest.mark.clause("HOOK-008")
@pytest.mark.parametrize("name", ["tokenizer", "original_model_path", "v4_compatible"])
def test_optional_keyword_may_be_left_out(impl, fresh_dir, name):
    given, left_out = fresh_dir(), fresh_dir()
    save = {**keywords(impl, given), "tokenizer": None}
    run_hook(impl, "pre_save", **save)
    run_hook(
        impl, "pre_save", **{key: value for key, value in save.items() if key != name} | {"model_path": str(left_out)}
    )
    assert snapshot(left_out) == snapshot(given)


@pytest.mark.clause("HOOK-008")
@pytest.mark.needs("qwen3_moe_adapter")
def test_form_of_experts_may_be_left_open(impl, fresh_dir):
    spec, given, left_out = TRAINED["qwen3_moe_fused"], fresh_dir(), fresh_dir()
    save = {
        "model_state": impl.model_state(spec.trained(impl.adapters), is_peft=True),
        "peft_config": spec.peft_config(impl.peft_config),
        "tokenizer": None,
        "original_model_path": None,
    }
    run_hook(impl, "pre_save", **save, model_path=str(given), v4_compatible=False)
    run_hook(impl, "pre_save", **save, model_path=str(left_out))
    assert snapshot(left_out) == snapshot(given)


@pytest.mark.clause("HOOK-009")
@pytest.mark.parametrize("kind", cases(["llama", "qwen3_moe_fused", "llama_combined"]))
def test_live_model_and_configs_are_unchanged(impl, fresh_dir, kind):
    spec = TRAINED[kind]
    model, peft_config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    weights = copy.deepcopy(model.state_dict())
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config, settings = model.config.to_dict(), copy.deepcopy(peft_config.to_dict())
    save_metadata(impl, model, fresh_dir(), peft_config, **spec.save)
    assert same_numbers(model.state_dict(), weights)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert model.config.to_dict() == config
    assert peft_config.to_dict() == settings


@pytest.mark.clause("HOOK-010")
@pytest.mark.parametrize("kind", cases(tagged("usual")))
def test_second_save_gives_the_same_bytes(impl, fresh_dir, kind):
    spec, directory = TRAINED[kind], fresh_dir()
    model = spec.trained(impl.adapters)

    def save():
        save_metadata(impl, model, directory, spec.peft_config(impl.peft_config), tokenizer=tokenizer(), **spec.save)
        return snapshot(directory)

    assert save() == save()


SAVE_ELSEWHERE = """
import gc, os, sys
gc.disable()  # looking for garbage takes a fifth of the time of the imports
from spec_tests.loading import load
from spec_tests.strategies.unordered import save_some_names
impl = load(sys.argv[1])
os.chdir(sys.argv[2])
for targets in ("list", "set"):
    there = os.path.join(sys.argv[3], targets)
    os.mkdir(there)
    save_some_names(impl, there, targets)
"""


@pytest.fixture(scope="module")
def saved_elsewhere(impl_name, tmp_path_factory):
    """What another process saved, from another directory, under another locale and seed of hashes."""
    there = tmp_path_factory.mktemp("there")
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONPATH": paths}
    # The child changes its directory once it has loaded the implementation, which may be named by a relative path.
    elsewhere = tmp_path_factory.mktemp("cwd")
    command = [sys.executable, "-c", SAVE_ELSEWHERE, impl_name, str(elsewhere), str(there)]
    return there, subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param("list", marks=pytest.mark.clause("HOOK-010")),
        pytest.param("set", marks=pytest.mark.clause("META-005")),
    ],
)
def test_bytes_do_not_depend_on_the_process(impl, fresh_dir, saved_elsewhere, targets):
    here, (there, done) = fresh_dir(), saved_elsewhere
    save_some_names(impl, here, targets)
    # A set that cannot be saved is no fault of the list before it.
    assert done.returncode == 0 or targets == "list", done.stderr
    assert snapshot(here) == snapshot(there / targets) != {}, done.stderr
