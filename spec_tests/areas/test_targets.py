"""TGT: target modules and parameters (spec/targets.md)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.combined import combine_projections
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import save_adapter, save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec, names, near_misses, trees, wrapped


def targets(impl, model, directory, **save):
    return save_metadata(impl, model, directory, **save).config["target_modules"]


@pytest.mark.clause("TGT-001")
@given(tree=trees())
def test_every_module_with_lora_is_listed_under_its_name(impl, fresh_dir, tree):
    assert targets(impl, tree.build(), fresh_dir()) == tree.expected_targets()


@pytest.mark.parametrize(
    ("combined", "parts"),
    [
        pytest.param("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), marks=pytest.mark.clause("TGT-002")),
        pytest.param("mlp.gate_up_proj", ("gate_proj", "up_proj"), marks=pytest.mark.clause("TGT-003")),
    ],
    ids=["qkv", "gate_up"],
)
@given(layers=st.sets(st.integers(0, 11), min_size=1, max_size=2), dense=st.booleans())
def test_split_projections_are_listed_by_their_parts(impl, fresh_dir, combined, parts, layers, dense):
    spec = TRAINED["llama_combined"]
    chosen = {f"model.layers.{layer % 2}.{combined}" for layer in layers}
    others = ["model.layers.1.mlp.down_proj"] if dense else []
    trained = replace(spec, dense=(*chosen, *others)).build(impl.adapters)
    expected = sorted([f"{name.rpartition('.')[0]}.{part}" for name in chosen for part in parts] + others)
    assert targets(impl, trained, fresh_dir(), peft_config=spec.peft_config(impl.peft_config)) == expected


@pytest.mark.clause("TGT-004")
@given(data=st.data())
def test_wrappers_leave_no_trace_in_names(impl, fresh_dir, data):
    tree = data.draw(trees().flatmap(wrapped))
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules


@pytest.mark.clause("TGT-004")
@pytest.mark.parametrize(
    "wrappers",
    [
        (("", "compile"),),
        (("layers.0", "checkpoint"),),
        (("layers.0", "compile"),),
        (("layers.0.q", "checkpoint"), ("", "compile")),
        (("layers.0.q", "compile"), ("layers.0", "checkpoint"), ("", "checkpoint")),
    ],
    ids=lambda wrappers: "+".join(f"{kind}@{path or 'root'}" for path, kind in wrappers),
)
def test_usual_wrappers_leave_no_trace_in_names(impl, fresh_dir, wrappers):
    tree = TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q")), wrappers)
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == ["layers.0.q", "layers.1.q"] == written.modules


@pytest.mark.clause("TGT-005")
@given(tree=trees(segment=near_misses()))
@example(tree=TreeSpec((Leaf("exploration_head.q"),)))
@example(tree=TreeSpec((Leaf("layers.lora_cache.q"),)))
def test_names_that_only_contain_lora_are_left_as_they_are(impl, fresh_dir, tree):
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules


@pytest.mark.clause("TGT-006")
@given(data=st.data())
def test_order_of_registration_does_not_matter(impl, fresh_dir, data):
    tree = data.draw(trees())
    shuffled = replace(tree, leaves=tuple(data.draw(st.permutations(tree.leaves))))
    listed = targets(impl, shuffled.build(), fresh_dir())
    assert listed == sorted(set(listed)) == targets(impl, tree.build(), fresh_dir())


@pytest.mark.clause("TGT-008")
@given(tree=trees(segment=st.one_of(names(), st.sampled_from(["qkv_proj", "gate_up_proj"]))))
@example(tree=TreeSpec((Leaf("qkv_proj"),)))
def test_unsplit_projections_keep_their_names(impl, fresh_dir, tree):
    assume(any(name.endswith(("qkv_proj", "gate_up_proj")) for name in tree.expected_targets()))
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules


@pytest.mark.clause("TGT-008")
def test_natively_fused_llama_keeps_its_names(impl, fresh_dir):
    model = TRAINED["llama"].base()
    combine_projections(model)
    apply_dense_lora(model, ["qkv_proj", "gate_up_proj"], RANK, ALPHA)
    written = save_adapter(impl, model, fresh_dir(), TRAINED["llama"].peft_config(impl.peft_config))
    expected = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("mlp.gate_up_proj", "self_attn.qkv_proj")]
    assert written.config["target_modules"] == expected == written.modules


@pytest.mark.clause("TGT-011")
@given(data=st.data())
def test_parts_give_the_names_of_the_whole(impl, fresh_dir, data):
    tree = data.draw(trees())
    stages = data.draw(st.lists(st.integers(0, 2), min_size=len(tree.leaves), max_size=len(tree.leaves)))
    parts = [
        replace(tree, leaves=tuple(leaf for leaf, at in zip(tree.leaves, stages, strict=True) if at == stage)).build()
        for stage in range(3)
    ]
    written = save_adapter(impl, parts, fresh_dir())
    assert written.config == save_metadata(impl, tree.build(), fresh_dir()).config
    assert written.modules == tree.expected_targets()


@pytest.mark.clause("TGT-012")
@given(tree=trees(lora=st.sampled_from(["trained", "frozen", "b_only", "none"])))
@example(tree=TreeSpec((Leaf("q", "frozen"),)))
def test_lora_is_saved_whether_or_not_it_is_frozen(impl, fresh_dir, tree):
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules
    assert len(written.tensors) == 2 * len(tree.expected_targets())


@pytest.mark.clause("TGT-014")
@given(data=st.data())
def test_renaming_a_module_renames_its_targets(impl, fresh_dir, data):
    tree = data.draw(trees())
    old = data.draw(st.sampled_from(sorted({leaf.path.partition(".")[0] for leaf in tree.leaves})))
    new = data.draw(names())
    assume(all(leaf.path.partition(".")[0] != new for leaf in tree.leaves))
    listed = set(targets(impl, tree.build(), fresh_dir()))
    renamed = set(targets(impl, tree.renamed(old, new).build(), fresh_dir()))
    kept = {name for name in listed if name.partition(".")[0] != old}
    assert renamed & listed == kept
    assert {new + name[len(old) :] for name in listed - kept} == renamed - kept


@pytest.mark.clause("TGT-014")
@pytest.mark.parametrize("name", ["model", "transformer", "module", "base_model", "layers"])
def test_first_part_of_a_name_is_kept(impl, fresh_dir, name):
    tree = TreeSpec((Leaf(f"{name}.0.q_proj"), Leaf(f"{name}.{name}.q_proj"), Leaf("q_proj")))
    assert targets(impl, tree.build(), fresh_dir()) == tree.expected_targets()


@pytest.mark.clause("TGT-014")
def test_names_that_wrappers_use_are_kept_on_modules_that_are_none(impl, fresh_dir):
    names = ("base_model", "module", "modules_to_save", "original_module")
    tree = TreeSpec(tuple(Leaf(f"{name}.q_proj") for name in names))
    written = save_adapter(impl, tree.build(), fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules


@pytest.mark.clause("TGT-014")
@pytest.mark.parametrize("name", ["query", "Wqkv", "x1", "proj", "0"])
def test_projection_of_any_name_is_listed(impl, fresh_dir, name):
    tree = TreeSpec((Leaf(f"layers.0.{name}"), Leaf("layers.1.q_proj")))
    assert targets(impl, tree.build(), fresh_dir()) == tree.expected_targets()


@pytest.mark.clause("TGT-015", "ADP-010")
@given(tree=trees())
def test_encoder_prefix_is_in_no_name(impl, fresh_dir, tree):
    assume(all(leaf.path.partition(".")[0] != "model" for leaf in tree.leaves))
    inside = replace(tree, leaves=tuple(Leaf(f"model.{leaf.path}", leaf.lora) for leaf in tree.leaves))
    model = inside.build()
    model.state_dict_adapter = impl.adapters["encoder"]()
    written = save_adapter(impl, model, fresh_dir())
    assert written.config["target_modules"] == tree.expected_targets() == written.modules


@pytest.mark.clause("TGT-004")
@pytest.mark.parametrize("kind", ["compile", "checkpoint"])
@pytest.mark.parametrize("inner", ["lora_A", "lora_B"])
def test_wrapped_lora_matrices_are_found(impl, fresh_dir, kind, inner):
    tree = TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q")))
    model = wrap(tree.build(), f"layers.0.q.{inner}", kind)
    written = save_adapter(impl, model, fresh_dir())
    assert written.config["target_modules"] == ["layers.0.q", "layers.1.q"] == written.modules
    assert len(written.tensors) == 4


@pytest.mark.clause("TGT-017")
@pytest.mark.parametrize("shared", ["module", "both matrices", "lora_A"])
def test_shared_lora_is_saved_under_each_name(impl, fresh_dir, shared):
    model = TreeSpec((Leaf("layers.0.q"), Leaf("layers.0.k", "none"), Leaf("layers.1.q"), Leaf("other.q"))).build()
    layers, q = model.layers, model.get_submodule("layers.0.q")
    if shared == "module":
        layers.get_submodule("1").q = q
    else:
        layers.get_submodule("1").q = copy.deepcopy(q)
        for matrix in ("lora_A", "lora_B") if shared == "both matrices" else ("lora_A",):
            setattr(layers.get_submodule("1").q, matrix, getattr(q, matrix))
    written = save_adapter(impl, model, fresh_dir())
    assert written.config["target_modules"] == ["layers.0.q", "layers.1.q", "other.q"] == written.modules
    tensors = written.tensors
    for matrix in "AB":
        first, second = (tensors[f"base_model.model.layers.{n}.q.lora_{matrix}.weight"] for n in (0, 1))
        assert torch.equal(first, second)


@pytest.mark.clause("TGT-019")
def test_dense_modules_of_a_model_without_experts_are_modules(impl, fresh_dir):
    tree = TreeSpec((Leaf("layers.0.mlp.gate_proj"), Leaf("layers.0.gate"), Leaf("layers.0.my_experts_2.up_proj")))
    config = save_metadata(impl, tree.build(), fresh_dir()).config
    assert config["target_modules"] == tree.expected_targets()


@pytest.mark.clause("TGT-011")
@pytest.mark.parametrize("first", [0, 1], ids=["the first part has it", "the second part has it"])
def test_conversion_of_any_part_is_that_of_all(impl, fresh_dir, first):
    model = TRAINED["llama_combined"].trained(impl.adapters)
    whole = save_adapter(impl, model, fresh_dir(), TRAINED["llama_combined"].peft_config(impl.peft_config))
    layers, parts = model.model.layers, [copy.deepcopy(model) for _ in range(2)]
    for number, part in enumerate(parts):
        for other in set(range(len(layers))) - {number}:
            part.model.layers[other] = torch.nn.Identity()
    parts[1 - first].state_dict_adapter = None
    written = save_metadata(impl, parts, fresh_dir(), TRAINED["llama_combined"].peft_config(impl.peft_config))
    assert written.config == whole.config


@pytest.mark.clause("TGT-018")
@pytest.mark.needs("encoder_adapter")
def test_encoder_prefix_stays_in_the_middle_of_a_name(impl, fresh_dir):
    tree = TreeSpec((Leaf("model.layers.q"), Leaf("vision_model.layers.q"), Leaf("tower.model.k")))
    model = tree.build()
    model.state_dict_adapter = impl.adapters["encoder"]()
    written = save_adapter(impl, model, fresh_dir())
    assert written.modules == ["layers.q", "tower.model.k", "vision_model.layers.q"]
