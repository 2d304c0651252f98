"""ADP: adapter_config.json (spec/adapter_config.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spec_tests.builders.catalogue import TRAINED, cases, tagged
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.builders.wrappers import wrap
from spec_tests.consumers import peft as peft_reader
from spec_tests.harness.export import (
    PREFIX,
    WRONG_VALUE,
    Adapter,
    error_of,
    refusal,
    save_adapter,
    save_metadata,
    snapshot,
    text_of,
)
from spec_tests.strategies.experts import MoESpec, moe_model
from spec_tests.strategies.trees import Leaf, TreeSpec, trees

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.mlp.up_proj")))
ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
kinds = pytest.mark.parametrize("kind", cases(tagged("usual")))


def saved(impl, directory, kind):
    spec = TRAINED[kind]
    config = spec.peft_config(impl.peft_config)
    return save_adapter(impl, spec.trained(impl.adapters), directory, config, **spec.save)


@pytest.mark.clause("ADP-001", "ADP-003", "ADP-004")
@kinds
def test_fixed_values_and_types(impl, fresh_dir, kind):
    config = saved(impl, fresh_dir(), kind).config
    assert config["peft_type"] == "LORA"
    assert config.get("bias", "none") == "none"
    assert config.get("use_dora", False) is TRAINED[kind].use_dora
    assert type(config["target_modules"]) is list
    assert all(type(name) is str and name for name in config["target_modules"])


@pytest.mark.clause("ADP-032")
@kinds
def test_use_dora_is_there(impl, fresh_dir, kind):
    assert "use_dora" in saved(impl, fresh_dir(), kind).config


@pytest.mark.clause("ADP-002")
@given(rank=st.integers(1, 6), alpha=st.one_of(st.integers(1, 512), st.floats(0.25, 64.0)))
def test_rank_and_alpha_are_the_configs(impl, fresh_dir, rank, alpha):
    tree = replace(TREE, rank=rank, alpha=alpha)
    config = save_metadata(impl, tree.build(), fresh_dir(), impl.peft_config(dim=rank, alpha=alpha)).config
    assert (type(config["r"]), config["r"]) == (int, rank)
    assert (type(config["lora_alpha"]), config["lora_alpha"]) == (type(alpha), alpha)


@pytest.mark.clause("ADP-005")
@kinds
def test_target_parameters_only_with_fused_experts(impl, fresh_dir, kind):
    found = saved(impl, fresh_dir(), kind).config.get("target_parameters")
    assert (found is not None) is (kind == "qwen3_moe_fused")


@pytest.mark.clause("ADP-006")
@pytest.mark.parametrize(
    ("ending", "task"),
    [
        ("ForCausalLM", "CAUSAL_LM"),
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForTokenClassification", "TOKEN_CLS"),
        ("ForQuestionAnswering", "QUESTION_ANS"),
        ("ForSeq2SeqLM", "SEQ_2_SEQ_LM"),
        ("Model", "FEATURE_EXTRACTION"),
    ],
)
@given(family=st.from_regex(r"[A-Z][a-z]{1,6}[0-9]?", fullmatch=True))
def test_task_type_follows_the_architecture(impl, fresh_dir, ending, task, family):
    tree = replace(TREE, architecture=family + ending)
    assert save_metadata(impl, tree.build(), fresh_dir()).config["task_type"] == task


def registered(registry):
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, f"MODEL_FOR_{registry}_MAPPING_NAMES").values()
    return {name for names in found for name in ([names] if isinstance(names, str) else names)}


@pytest.mark.clause("ADP-023")
@pytest.mark.parametrize(
    ("registry", "task"),
    [
        ("SEQUENCE_CLASSIFICATION", "SEQ_CLS"),
        ("TOKEN_CLASSIFICATION", "TOKEN_CLS"),
        ("QUESTION_ANSWERING", "QUESTION_ANS"),
        ("SEQ_TO_SEQ_CAUSAL_LM", "SEQ_2_SEQ_LM"),
        ("CAUSAL_LM", "CAUSAL_LM"),
        ("MASKED_LM", None),
    ],
)
def test_task_type_is_right_for_what_transformers_lists(impl, fresh_dir, registry, task):
    names = registered(registry)
    if task is None:
        names -= registered("SEQ_TO_SEQ_CAUSAL_LM") | registered("CAUSAL_LM")
    wrong = {}
    for name in sorted(names):
        model = replace(TREE, architecture=name).build()
        model.config.is_encoder_decoder = registry == "SEQ_TO_SEQ_CAUSAL_LM"
        found = save_metadata(impl, model, fresh_dir()).config["task_type"]
        if found != task:
            wrong[name] = found
    assert len(names) > 10
    assert wrong == {}


@pytest.mark.clause("ADP-007")
@given(name=st.from_regex(r"[a-z]{1,6}/[A-Za-z0-9._-]{1,12}", fullmatch=True))
def test_base_model_is_the_configs_name(impl, fresh_dir, name):
    config = save_metadata(impl, replace(TREE, base=name).build(), fresh_dir()).config
    assert config["base_model_name_or_path"] == name


@pytest.mark.clause("ADP-008")
@kinds
def test_helper_returns_what_is_written(impl, fresh_dir, kind):
    spec = TRAINED[kind]
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    written = save_metadata(impl, model, fresh_dir(), config, **spec.save).config
    returned = impl.helpers["_get_hf_peft_config"](config, impl.model_state(model, is_peft=True), **spec.save)
    assert returned == written


@pytest.mark.clause("ADP-008")
def test_helper_returns_what_is_written_of_a_wrapped_model(impl, fresh_dir):
    spec = TRAINED["llama"]
    model, config = nn.DataParallel(spec.trained(impl.adapters)), spec.peft_config(impl.peft_config)
    written = save_metadata(impl, model, fresh_dir(), config).config
    assert written["task_type"] == "CAUSAL_LM"
    assert impl.helpers["_get_hf_peft_config"](config, impl.model_state(model, is_peft=True)) == written


@pytest.mark.clause("ADP-009")
@pytest.mark.parametrize("kind", cases(["llama", "llama_dora", "qwen3_moe_v4"]))
def test_a_real_lora_config_is_accepted(impl, fresh_dir, kind):
    import peft

    spec = TRAINED[kind]
    model = spec.trained(impl.adapters)
    own = save_metadata(impl, model, fresh_dir(), spec.peft_config(impl.peft_config), **spec.save)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=spec.use_dora, target_modules=list(spec.dense))
    assert save_metadata(impl, model, fresh_dir(), config, **spec.save).config == own.config


def modules_with_tensors(written):
    """Names of modules with tensors, without those that fused expert parameters stand for."""
    parents = [name.rpartition(".")[0] for name in written.config.get("target_parameters") or []]
    fused = [m for m in written.modules if any(m.removesuffix(".base_layer").endswith(p) for p in parents)]
    assert bool(fused) is bool(parents)
    return [module for module in written.modules if module not in fused]


@pytest.mark.clause("ADP-010", "ADP-011")
@kinds
def test_targets_are_the_modules_with_tensors(impl, fresh_dir, kind):
    written = saved(impl, fresh_dir(), kind)
    everywhere = {name for name, _ in TRAINED[kind].base().named_modules()}.union(written.modules)
    assert peft_reader.targeted(written.config, everywhere) == modules_with_tensors(written)
    assert all(key.startswith(PREFIX) and key.endswith(ENDINGS) for key in written.tensors)


@pytest.mark.clause("ADP-010", "ADP-011", "LOAD-001")
@given(tree=trees())
def test_targets_are_the_modules_with_tensors_in_any_tree(impl, fresh_dir, tree):
    written = save_adapter(impl, tree.build(), fresh_dir())
    everywhere = set(tree.expected_targets()).union(written.modules)
    assert peft_reader.targeted(written.config, everywhere) == modules_with_tensors(written) == tree.expected_targets()
    assert all(key.startswith(PREFIX) and key.endswith(ENDINGS) for key in written.tensors)


@pytest.mark.clause("ADP-010", "ADP-011")
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "activation checkpointing"])
def test_base_that_bitsandbytes_has_quantised_changes_no_key(impl, fresh_dir, checkpointed):
    model = TREE.build()
    for name in TREE.expected_targets():
        layer = model.get_submodule(name)
        # What makes a Linear4bit one: two weights a byte, and how to read them beside it.
        layer.weight = nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        layer.quant_state = object()
        if checkpointed:
            wrap(model, name, "checkpoint")
    written, plain = save_adapter(impl, model, fresh_dir()), save_adapter(impl, TREE.build(), fresh_dir())
    assert peft_reader.targeted(written.config, written.modules) == TREE.expected_targets()
    assert written.tensors.keys() == plain.tensors.keys()
    assert all(key.startswith(PREFIX) and key.endswith(ENDINGS) for key in written.tensors)


@pytest.mark.clause("ADP-012")
def test_model_without_lora_is_refused(impl, fresh_dir):
    directory = fresh_dir()
    tree = TreeSpec((Leaf("model.layers.0.q_proj", "none"),))
    error = refusal(lambda: save_metadata(impl, tree.build(), directory), directory, kinds=(ValueError, RuntimeError))
    assert "lora" in text_of(error).lower()


@pytest.mark.clause("ADP-013")
@pytest.mark.parametrize("known", ["an empty name", "no config"])
def test_unknown_base_model_is_no_placeholder(impl, fresh_dir, known):
    model = replace(TREE, base="").build()
    if known == "no config":
        del model.config
    assert save_metadata(impl, model, fresh_dir()).config.get("base_model_name_or_path") is None


def ranks_of(written):
    """(rank by the config, rank on disk) of every module with tensors; patterns as PEFT matches them."""
    import re

    config = written.config
    for key, tensor in written.tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            patterns = config.get("rank_pattern", {}).items()
            by_pattern = (rank for name, rank in patterns if re.match(rf"(.*\.)?({name})$", module))
            yield next(by_pattern, config["r"]), tensor.shape[0]


@pytest.mark.clause("ADP-014")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("moe_rank", [2, 8])
def test_every_rank_is_the_configs_or_refused(impl, fresh_dir, moe_rank):
    directory = fresh_dir()
    model = moe_model(impl, MoESpec(rank=moe_rank))
    config = impl.peft_config(dim=4, alpha=8)
    error = error_of(lambda: save_adapter(impl, model, directory, config, v4_compatible=True))
    if error is None:
        pairs = list(ranks_of(Adapter(directory)))
        assert pairs
        assert all(said == found for said, found in pairs)
    else:
        assert isinstance(error, (NotImplementedError, ValueError, RuntimeError)), error
        assert "rank" in text_of(error)
        assert snapshot(directory) == {}


@pytest.mark.clause("ADP-016")
@pytest.mark.parametrize("kind", cases(["llama_dora", "qwen3_moe_fused"]))
def test_peft_reads_the_config_without_a_warning(impl, fresh_dir, kind):
    written = saved(impl, fresh_dir(), kind)
    read, complaints = peft_reader.read_config(written.directory)
    assert complaints == []
    differing = {name for name, value in written.config.items() if read.get(name) != value}
    # PEFT holds target_modules as a set.
    assert differing - {"target_modules"} == set()
    assert sorted(read["target_modules"]) == written.config["target_modules"]


@pytest.mark.clause("ADP-018")
@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0, -4, True, "16", None], ids=str)
def test_alpha_that_is_no_positive_number_is_refused(impl, fresh_dir, alpha):
    directory, model = fresh_dir(), TREE.build()
    for module in model.modules():  # so that nothing but alpha itself is wrong
        vars(module).pop("scale", None)
    refusal(
        lambda: save_metadata(impl, model, directory, impl.peft_config(dim=4, alpha=alpha)),
        directory,
        naming="alpha",
        kinds=WRONG_VALUE,
    )


@pytest.mark.clause("ADP-020")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dense_tensors_keep_their_dtype(impl, fresh_dir, dtype):
    written = save_adapter(impl, TREE.build().to(dtype), fresh_dir())
    assert {tensor.dtype for tensor in written.tensors.values()} == {dtype}


@pytest.mark.clause("ADP-015")
@kinds
def test_use_dora_goes_with_magnitudes(impl, fresh_dir, kind):
    written = saved(impl, fresh_dir(), kind)
    assert written.config.get("use_dora", False) is any(
        key.endswith("lora_magnitude_vector") for key in written.tensors
    )
