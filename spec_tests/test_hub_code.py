# SPDX-License-Identifier: Apache-2.0
"""CODE: code that is found through the model, or left out for its sake (spec/custom_code.md)."""

from __future__ import annotations

import pytest

from spec_tests.builders import hf
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import save_metadata, snapshot, stage_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))


def adapter_code(impl, model, directory, **save):
    return code_in(save_metadata(impl, model, directory, **save).directory)


def consolidated_code(impl, model, directory, **save):
    return code_in(stage_metadata(impl, model, directory, **save))


def code_in(directory):
    return {name: content for name, content in snapshot(directory).items() if not name.endswith(".json")}


addons = pytest.mark.parametrize(
    ("code_of", "build"), [(adapter_code, TREE.build), (consolidated_code, hf.llama)], ids=["adapter", "consolidated"]
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
