# SPDX-License-Identifier: Apache-2.0
"""CODE: code that is found through the model, or left out for its sake (spec/custom_code.md)."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spec_tests.builders import hf
from spec_tests.builders.code import CODE_FILES, remote_code_model, remote_code_snapshot
from spec_tests.builders.families import outputs, text_inputs
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.training import shard
from spec_tests.builders.wrappers import wrap
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import save_metadata, snapshot, stage_metadata
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))


def adapter_code(impl, model, directory, **save):
    return code_in(save_metadata(impl, model, directory, **save).directory)


def consolidated_code(impl, model, directory, **save):
    return code_in(stage_metadata(impl, model, directory, **save))


def code_in(directory):
    return {name: content for name, content in snapshot(directory).items() if not name.endswith(".json")}


WHOLE = {"marks": pytest.mark.needs("consolidated"), "id": "consolidated"}
addons = pytest.mark.parametrize(
    ("code_of", "build"),
    [pytest.param(adapter_code, TREE.build, id="adapter"), pytest.param(consolidated_code, hf.llama, **WHOLE)],
)


@pytest.mark.clause("CODE-009")
@addons
@pytest.mark.parametrize("wrapper", [None, "compile", "checkpoint"])
def test_stock_model_comes_without_code(impl, fresh_dir, code_of, build, wrapper):
    original, model = fresh_dir(), build()
    (original / "modeling_x.py").write_text("x = 1\n")
    for path in (original, original / "modeling_x.py"):
        for marked in (False, True):
            model._export_as_stock_model = marked
            saved = wrap(model, "", wrapper) if wrapper else model
            code = code_of(impl, saved, fresh_dir(), original_model_path=str(path))
            assert sorted(code) == ([] if marked else ["modeling_x.py"])


HUB_CODE = {name: (remote_code_snapshot() / name).read_bytes() for name in CODE_FILES}


def hub_model(directory):
    """The remote-code model as it is after loading: its folder is gone, and it refers to the hub."""
    model = remote_code_model(directory)
    model.config.auto_map = {auto: f"org/tiny--{reference}" for auto, reference in model.config.auto_map.items()}
    shutil.rmtree(directory)
    return model


def with_lora(model):
    apply_dense_lora(model, ["up_proj"], dim=4, alpha=8)
    return model


hub_addons = pytest.mark.parametrize(
    ("code_of", "prepared"),
    [
        pytest.param(adapter_code, with_lora, id="adapter"),
        pytest.param(consolidated_code, lambda model: model, **WHOLE),
    ],
)


@pytest.mark.clause("CODE-008")
@hub_addons
@pytest.mark.parametrize("original", [None, "org/tiny", "a folder without code"])
@pytest.mark.parametrize("outside", [None, "compile", "class"])
def test_code_of_a_hub_model_is_copied(impl, fresh_dir, code_of, prepared, original, outside):
    model = prepared(hub_model(fresh_dir()))
    if outside == "class":
        # As FSDP2 does.
        bases, body = (type(model),), {"__module__": "torch.distributed.fsdp"}
        model.__class__ = type(f"FSDP{type(model).__name__}", bases, body)
    elif outside:
        model = wrap(model, "", outside)
    path = str(fresh_dir()) if original is not None and original.startswith("a folder") else original
    assert code_of(impl, model, fresh_dir(), original_model_path=path) == HUB_CODE


@pytest.mark.clause("CODE-008")
@pytest.mark.needs("_maybe_save_custom_model_code")
@pytest.mark.parametrize("wrapper", [None, "compile"])
def test_helper_finds_the_code_of_a_hub_model(impl, fresh_dir, wrapper):
    model, out = hub_model(fresh_dir()), fresh_dir()
    impl.helpers["_maybe_save_custom_model_code"](None, str(out), wrap(model, "", wrapper) if wrapper else model)
    assert code_in(out) == HUB_CODE


@pytest.mark.clause("CODE-008")
@hub_addons
def test_folder_of_the_class_is_copied_wherever_its_references_point(impl, fresh_dir, code_of, prepared):
    model = prepared(hub_model(fresh_dir()))
    folder = Path(inspect.getfile(type(model))).parent
    more = {"layers.py": b"class Layer: size = 1\n", "parts/layers.py": b"class Layer: size = 2\n"}
    more["parts/sizes.py"] = b"size = 2\n"  # beside layers.py of the folder above, it would be the wrong one
    for name, content in more.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    importlib.invalidate_caches()
    model.config.auto_map |= {"AutoTokenizer": "parts.layers.Layer", "AutoProcessor": "org/other--layers.Layer"}
    assert code_of(impl, model, fresh_dir(), original_model_path=None) == HUB_CODE | more


@pytest.mark.clause("CODE-008")
@hub_addons
def test_code_of_the_original_comes_before_that_of_the_hub(impl, fresh_dir, code_of, prepared):
    original = fresh_dir()
    (original / "modeling_mine.py").write_text("x = 1\n")
    code = code_of(impl, prepared(hub_model(fresh_dir())), fresh_dir(), original_model_path=str(original))
    assert code == {"modeling_mine.py": b"x = 1\n"}


@pytest.mark.clause("CODE-008")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("package", ["transformers_modules_of_mine", "mine.transformers_modules"])
def test_code_of_another_package_is_not_copied(impl, fresh_dir, monkeypatch, package):
    folder = fresh_dir()
    (folder / "modeling_x.py").write_text("x = 1\n")
    module = ModuleType(f"{package}.modeling_x")
    module.__file__ = str(folder / "modeling_x.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = hf.llama()
    model.__class__ = type("Mine", (type(model),), {"__module__": module.__name__})
    assert consolidated_code(impl, model, fresh_dir()) == {}


def save_sharded(rank, world, impl, original, directory):
    model = shard(hub_model(original / str(rank)))
    impl.save_consolidated(model, directory)


@pytest.mark.clause("CODE-008", "CODE-005")
def test_hub_model_that_was_saved_loads_in_a_clean_process(impl, fresh_dir):
    model, directory = hub_model(fresh_dir()), fresh_dir() / "model"
    values(run_ranks(2, save_sharded, impl, fresh_dir(), directory))
    read = reload(directory, "AutoModelForCausalLM", text_inputs(), trust_remote_code=True)
    assert (read.missing, read.unexpected) == ([], [])
    assert (torch.tensor(read.outputs) - outputs(model, text_inputs())).abs().max() <= 1e-5


@pytest.mark.clause("CODE-005")
def test_remote_code_model_loads_in_a_clean_process(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "model"
    model = remote_code_model(original)
    impl.save_consolidated(model, directory, original_model_path=str(original), tokenizer=tokenizer())
    for path in original.rglob("*.py"):
        path.unlink()
    read = reload(directory, "AutoModelForCausalLM", text_inputs(), trust_remote_code=True)
    assert read.model_class == type(model).__name__
    assert (read.missing, read.unexpected) == ([], [])
    assert (torch.tensor(read.outputs) - outputs(model, text_inputs())).abs().max() <= 1e-5
