# SPDX-License-Identifier: Apache-2.0
"""Classes that trainers derive from the bundled mixins: a split of their own counts, as a `to_hf` of their own does."""

from __future__ import annotations

import addons
from addons import MoESplitExpertsStateDictMixin
from spec_tests.harness.export import save_adapter
from spec_tests.implementations.package import from_package
from spec_tests.strategies.experts import MoESpec


class MixtralStateDictAdapter(MoESplitExpertsStateDictMixin):
    """Experts as Mixtral calls them."""

    def _split(self, experts, projection, tensor, kind):
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        split = super()._split(experts, projection, tensor, kind)
        return {
            name.replace(".mlp.", ".block_sparse_moe.").replace(f".{old}.", f".{new}."): value
            for name, value in split.items()
            for old, new in names.items()
            if f".{old}." in name
        }


def test_targets_are_what_a_split_of_its_own_gives(tmp_path):
    model = MoESpec(rank=4).build()
    model.state_dict_adapter = MixtralStateDictAdapter()
    written = save_adapter(from_package(addons, "reference", "here"), model, tmp_path)
    assert written.config["target_modules"] == written.modules
    assert "model.layers.0.block_sparse_moe.experts.0.w1" in written.modules
