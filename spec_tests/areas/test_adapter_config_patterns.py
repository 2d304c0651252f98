"""ADP: ranks and scales that differ between modules (spec/adapter_config.md)."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.lora import LoRALinear
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.harness.export import PREFIX, REFUSED, error_of, refusal, save_adapter, save_metadata, snapshot
from spec_tests.strategies.experts import MoESpec, moe_model
from spec_tests.strategies.trees import Leaf, TreeSpec, trees


def first_match(patterns, name, default):
    """PEFT's rule (0.18 to 0.21 `get_pattern_key`): the first pattern that is the name or its end decides."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def relora(model, path, rank, alpha):
    linear = model.get_submodule(path)
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).add_module(name, LoRALinear(linear, rank, alpha))


@pytest.mark.clause("ADP-014", "ADP-017")
@given(tree=trees(), data=st.data())
@example(tree=TreeSpec((Leaf("A.q"), Leaf("a.q"), Leaf("b.a.q"))), data=None)
@example(tree=TreeSpec((Leaf("A.q"), Leaf("a.q"), Leaf("aXq"))), data=None)
@example(tree=TreeSpec((Leaf("q"), Leaf("b.q"))), data=None)
@example(tree=TreeSpec((Leaf("q"), Leaf("b.q"), Leaf("c.d.k"))), data=None)
def test_config_gives_every_module_its_rank_and_scale(impl, fresh_dir, tree, data):
    model, ranks, scales, directory = tree.build(), {}, {}, fresh_dir()
    for number, path in enumerate(tree.expected_targets()):
        ranks[path] = data.draw(st.sampled_from([4, 4, 2, 7])) if data else 4 + number
        # As rank-stabilised LoRA has them, some are just beside a whole number.
        alpha = data.draw(st.sampled_from([8, 8, 3, 0.5, 362.0387])) if data else (8, 8.002)[number % 2]
        scales[path] = alpha / ranks[path]
        relora(model, path, ranks[path], alpha)
    error = error_of(lambda: save_adapter(impl, model, directory))
    if error is not None:
        # One name is the end of another: no pattern could tell them apart.
        assert isinstance(error, REFUSED), error
        assert any(one.endswith(f".{other}") for one in ranks for other in ranks), ranks
        assert snapshot(directory) == {}
        return
    written = save_adapter(impl, model, directory)
    config, tensors = written.config, written.tensors
    rank_pattern, alpha_pattern = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    for path, rank in ranks.items():
        assert tensors[f"{PREFIX}{path}.lora_A.weight"].shape[0] == rank
        assert first_match(rank_pattern, path, config["r"]) == rank
        alpha = first_match(alpha_pattern, path, config["lora_alpha"])
        assert math.isclose(alpha / rank, scales[path], rel_tol=1e-6)
    for pattern in (*rank_pattern, *alpha_pattern):
        assert any(first_match({pattern: True}, path, False) for path in ranks), pattern


@pytest.mark.clause("ADP-017")
@pytest.mark.parametrize("own", ["q", "b.q"])
def test_scale_alone_that_differs_under_the_end_of_a_name_is_told_or_refused(impl, fresh_dir, own):
    model, directory, written = TreeSpec((Leaf("q"), Leaf("b.q"))).build(), fresh_dir(), []
    model.get_submodule(own).scale = 10.0
    error = error_of(lambda: written.append(save_metadata(impl, model, directory).config))
    if error is not None:
        assert isinstance(error, REFUSED), error
        assert snapshot(directory) == {}
        return
    (config,) = written
    for path in ("q", "b.q"):
        alpha = first_match(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
        rank = first_match(config.get("rank_pattern") or {}, path, config["r"])
        assert alpha / rank == pytest.approx(model.get_submodule(path).scale)


@pytest.mark.clause("ADP-014")
def test_no_pattern_without_need(impl, fresh_dir):
    config = save_metadata(impl, TreeSpec((Leaf("a.q"),)).build(), fresh_dir()).config
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")


@pytest.mark.clause("ADP-014", "ADP-017")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_experts_of_another_rank_have_a_pattern(impl, fresh_dir, v4_compatible):
    spec = MoESpec(rank=2)
    model = moe_model(impl, spec)
    config = impl.peft_config(dim=4, alpha=8)
    written = save_adapter(impl, model, fresh_dir(), config, v4_compatible=v4_compatible).config
    scale = model.get_submodule(spec.paths()[0]).scale
    names = (
        spec.expected_modules()
        if v4_compatible
        else [f"{p}.{n}" for p in spec.paths() for n in ("gate_up_proj", "down_proj")]
    )
    for name in names:
        assert first_match(written["rank_pattern"], name, None) == 2
        assert first_match(written.get("alpha_pattern", {}), name, 8) / 2 == scale


@pytest.mark.clause("ADP-014")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
@pytest.mark.parametrize("odd", ["gate_and_up", "down"])
def test_projections_of_different_ranks_are_told_or_refused(impl, fresh_dir, odd, v4_compatible):
    directory, spec = fresh_dir(), MoESpec(rank=4)
    model = moe_model(impl, spec)
    for path in spec.paths():
        experts = model.get_submodule(path)
        for matrix, dim in (("A", 2), ("B", 1)):
            name = f"lora_{odd}_{matrix}"
            setattr(experts, name, nn.Parameter(getattr(experts, name).detach().repeat_interleave(2, dim)))
    config, written = impl.peft_config(dim=4, alpha=8), []
    error = error_of(lambda: written.append(save_adapter(impl, model, directory, config, v4_compatible=v4_compatible)))
    if error is not None:
        assert isinstance(error, REFUSED), error
        assert snapshot(directory) == {}
        return
    said = written[0].config
    ends = {
        "gate_and_up": ["0.gate_proj", "0.up_proj"] if v4_compatible else ["gate_up_proj"],
        "down": ["0.down_proj"] if v4_compatible else ["down_proj"],
    }
    for path, projection in itertools.product(spec.paths(), ends):
        rank = 8 if projection == odd else 4
        for end in ends[projection]:
            assert first_match(said.get("rank_pattern", {}), f"{path}.{end}", said["r"]) == rank


def without_scale(model):
    for module in model.modules():
        vars(module).pop("scale", None)
    return model


@pytest.mark.clause("ADP-017")
@pytest.mark.parametrize(
    "setting",
    [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 32}}, {"rank_pattern": {"q_proj": 8}}, {"r": 8}],
    ids=str,
)
def test_unknown_scale_is_refused(impl, fresh_dir, setting):
    import peft

    directory, spec = fresh_dir(), TRAINED["llama"]
    config = peft.LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, "target_modules": list(spec.dense), **setting})
    model = without_scale(spec.trained(impl.adapters))
    refusal(lambda: save_metadata(impl, model, directory, config), directory, naming="scale")


@pytest.mark.clause("ADP-017")
def test_scale_that_no_module_says_is_the_configs(impl, fresh_dir):
    spec = TRAINED["llama"]
    model, config = without_scale(spec.trained(impl.adapters)), spec.peft_config(impl.peft_config)
    written = save_metadata(impl, model, fresh_dir(), config).config
    for path in written["target_modules"]:
        alpha = first_match(written.get("alpha_pattern") or {}, path, written["lora_alpha"])
        assert alpha / first_match(written.get("rank_pattern") or {}, path, written["r"]) == ALPHA / RANK


@pytest.mark.clause("ADP-017")
def test_parts_of_a_split_projection_have_its_scale(impl, fresh_dir):
    spec = TRAINED["llama_combined"]
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    model.model.layers[0].self_attn.qkv_proj.scale = 10.0
    written = save_metadata(impl, model, fresh_dir(), config).config
    for path in written["target_modules"]:
        alpha = first_match(written.get("alpha_pattern") or {}, path, written["lora_alpha"])
        rank = first_match(written.get("rank_pattern") or {}, path, written["r"])
        assert alpha / rank == pytest.approx(10 if "layers.0.self_attn" in path else ALPHA / RANK)


@pytest.mark.clause("ADP-022")
@pytest.mark.parametrize(
    "setting",
    [
        {"lora_bias": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [(0, 2), (1, 2)]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
    ],
    ids=lambda setting: "-".join(map(str, next(iter(setting.items())))),
)
def test_setting_that_the_file_does_not_hold_is_refused(impl, fresh_dir, setting):
    import peft

    directory, spec = fresh_dir(), TRAINED["llama"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(spec.dense), **setting)
    refusal(
        lambda: save_metadata(impl, spec.trained(impl.adapters), directory, config),
        directory,
        naming=next(iter(setting)),
    )


@pytest.mark.clause("ADP-022")
@pytest.mark.parametrize(
    "setting", [{"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"bias": "none"}], ids=str
)
def test_setting_without_an_effect_is_no_reason_to_refuse(impl, fresh_dir, setting):
    import peft

    spec = TRAINED["llama"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(spec.dense), **setting)
    assert save_metadata(impl, spec.trained(impl.adapters), fresh_dir(), config).config["r"] == RANK
