"""CODE: custom model code (spec/custom_code.md)."""

from __future__ import annotations

import pytest

from spec_tests.harness.export import save_metadata, snapshot
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
CODE = {"modeling_x.py": b"from .parts.helper import y\n", "parts/helper.py": b"y = 1\n"}


@pytest.mark.clause("CODE-001")
def test_python_files_of_a_local_model_are_copied(impl, fresh_dir):
    original = fresh_dir()
    for name, content in {**CODE, "config.json": b"{}", "weights.safetensors": b"0"}.items():
        (original / name).parent.mkdir(exist_ok=True)
        (original / name).write_bytes(content)
    written = save_metadata(impl, TREE.build(), fresh_dir(), original_model_path=str(original))
    added = {name: content for name, content in snapshot(written.directory).items() if not name.endswith(".json")}
    assert added == CODE


@pytest.mark.clause("CODE-001")
@pytest.mark.parametrize("original", [None, "org/model", "no/such/directory"])
def test_nothing_is_copied_without_a_local_model(impl, fresh_dir, original):
    written = save_metadata(impl, TREE.build(), fresh_dir(), original_model_path=original)
    assert [name for name in snapshot(written.directory) if not name.endswith(".json")] == []
