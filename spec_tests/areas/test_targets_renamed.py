# SPDX-License-Identifier: Apache-2.0
"""TGT: target names of models whose adapter renames modules (spec/targets.md)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spec_tests.builders.renaming import renaming_adapter
from spec_tests.harness.export import refusal, save_adapter
from spec_tests.strategies.trees import Leaf, TreeSpec, trees

# Longer than any segment that is drawn.
NEW = "renamed_module"


@pytest.mark.clause("TGT-022")
@pytest.mark.parametrize("v4_compatible", [False, True])
@given(tree=trees(), data=st.data())
@example(tree=TreeSpec((Leaf("layers.0.mixer.up"), Leaf("layers.0.mixer_2"), Leaf("layers.1.mixer"))), data=None)
@example(tree=TreeSpec((Leaf("mixer"), Leaf("layers.1.up"))), data=None)
def test_targets_are_renamed_as_the_weights_are(impl, fresh_dir, v4_compatible, tree, data):
    segments = sorted({segment for leaf in tree.leaves for segment in leaf.path.split(".")})
    old = data.draw(st.sampled_from(segments)) if data else "mixer"
    model = tree.build()
    model.state_dict_adapter = renaming_adapter(impl.adapter_base, old, NEW)
    written = save_adapter(impl, model, fresh_dir(), v4_compatible=v4_compatible)
    new = f"{NEW}_4" if v4_compatible else NEW
    paths = [path.split(".") for path in tree.expected_targets()]
    assert written.config["target_modules"] == sorted(".".join(new if s == old else s for s in path) for path in paths)
    assert written.modules == written.config["target_modules"]


@pytest.mark.clause("TGT-027")
def test_adapter_that_cannot_convert_is_refused(impl, fresh_dir):
    directory, model = fresh_dir(), TreeSpec((Leaf("layers.0.q_proj"),)).build()
    model.state_dict_adapter = type("AdapterOfOlderForm", (), {})()
    config = impl.peft_config(dim=4, alpha=8)
    refusal(lambda: impl.save_adapter(model, directory / "adapter", config), directory, naming="to_hf")
