"""The builders: grouped experts and combined projections compute what they stand for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from spec_tests.builders import combined, experts, hf, lora, training
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.meta.lora_models import IDS, combined_llama, distance, trainable

if TYPE_CHECKING:
    pass


class TestGroupedExperts:
    @pytest.mark.parametrize("settings", [{}, {"num_experts": 8, "top_k": 3}, {"norm_topk_prob": False}])
    def test_native_blocks_compute_what_hugging_face_computes(self, settings: dict[str, Any]) -> None:
        model = hf.qwen3_moe(**settings)
        base = training.logits(model, IDS)
        names = experts.to_native_moe(model)
        assert names == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
        assert not [name for name, _ in model.named_parameters() if "gate_up_proj" in name or "down_proj." in name]
        assert distance(training.logits(model, IDS), base) < 1e-5

    @pytest.mark.parametrize(("gated", "width"), [(True, 48), (False, 24)], ids=["gated", "non-gated"])
    def test_layouts_and_names(self, gated: bool, width: int) -> None:
        model = hf.qwen3_moe()
        experts.to_native_moe(model, gated=gated)
        experts.apply_expert_lora(model, dim=8, alpha=4)
        site = model.get_submodule("model.layers.0.mlp.experts")
        shapes = {name: tuple(parameter.shape) for name, parameter in site.named_parameters()}
        assert shapes == {
            "gate_and_up_projs": (4, 32, width),
            "down_projs": (4, 24, 32),
            "lora_gate_and_up_A": (4, 32, 8),
            "lora_gate_and_up_B": (4, 8, width),
            "lora_down_A": (4, 24, 8),
            "lora_down_B": (4, 8, 32),
        }
        assert (site.lora_dim, site.scale) == (8, 0.5)
        assert {name.rpartition(".")[2] for name in trainable(model)} == {n for n in shapes if "lora" in n}
        lora.randomise_lora(model)
        assert bool(training.logits(model, IDS).isfinite().all())

    def test_non_gated_experts_keep_the_up_half(self) -> None:
        gated, plain = hf.qwen3_moe(), hf.qwen3_moe()
        (site, *_), _ = experts.to_native_moe(gated), experts.to_native_moe(plain, gated=False)
        both, kept = (m.get_submodule(site).gate_and_up_projs for m in (gated, plain))
        assert torch.equal(kept, both[..., 24:])

    @pytest.mark.parametrize("gated", [True, False], ids=["gated", "non-gated"])
    def test_expert_lora_equals_merged_weights(self, gated: bool) -> None:
        model = hf.qwen3_moe()
        experts.to_native_moe(model, gated=gated)
        base = training.logits(model, IDS)
        experts.apply_expert_lora(model, dim=4, alpha=8)
        assert distance(training.logits(model, IDS), base) < 1e-5
        lora.randomise_lora(model)
        trained = training.logits(model, IDS)
        for site in (m for m in model.modules() if isinstance(m, experts.GroupedExperts)):
            with torch.no_grad():
                site.gate_and_up_projs += site.scale * site.lora_gate_and_up_A @ site.lora_gate_and_up_B
                site.down_projs += site.scale * site.lora_down_A @ site.lora_down_B
                site.lora_gate_and_up_B.zero_()
                site.lora_down_B.zero_()
        assert distance(trained, base) > 0.1
        torch.testing.assert_close(training.logits(model, IDS), trained, rtol=1e-4, atol=1e-4)

    def test_non_gated_experts_square_their_relu(self) -> None:
        up, down = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0)), torch.ones(1, 16, 8)
        x = torch.ones(1, 8)
        out = experts.GroupedExperts(up, down, gated=False)(x, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1))
        torch.testing.assert_close(out, torch.relu(x @ up[0]).square() @ down[0])

    def test_expert_lora_in_chosen_layers_only_beside_dense_lora(self) -> None:
        model = hf.qwen3_moe()
        experts.to_native_moe(model)
        lora.apply_dense_lora(model, ["o_proj"], dim=4, alpha=8)
        assert experts.apply_expert_lora(model, dim=4, alpha=8, layers=[1]) == ["model.layers.1.mlp.experts"]
        assert {name.split(".mlp")[0].split(".self_attn")[0] for name in trainable(model)} == {
            "model.layers.0",
            "model.layers.1",
        }
        assert len(trainable(model)) == 2 * 2 + 4

    def test_what_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="llama"):
            experts.to_native_moe(hf.llama())
        with pytest.raises(ValueError, match="no mixture"):
            experts.to_native_moe(hf.qwen3_moe(dense_layers=[0, 1]))
        mixed = hf.qwen3_moe(dense_layers=[0])
        experts.to_native_moe(mixed)
        with pytest.raises(ValueError, match="'0'"):
            experts.apply_expert_lora(mixed, dim=4, alpha=8, layers=[0, 1])
        with pytest.raises(ValueError, match="no grouped experts"):
            experts.apply_expert_lora(hf.llama(), dim=4, alpha=8)


class TestCombinedProjections:
    @pytest.mark.parametrize("build", [hf.llama, hf.qwen3, lambda: hf.llama(attention_bias=True)])
    def test_combined_projections_compute_the_same(self, build: Any) -> None:
        model = build()
        base = training.logits(model, IDS)
        made = combined.combine_projections(model)
        assert {name.rpartition(".")[2] for name in made} == {"qkv_proj", "gate_up_proj"}
        assert len(made) == 4
        assert distance(training.logits(model, IDS), base) < 1e-5
        parts = {part for names in combined.PARTS.values() for part in names}
        assert not [name for name, _ in model.named_modules() if name.rpartition(".")[2] in parts]
        assert not [name for name, _ in model.named_parameters() if parts & set(name.split("."))]

    @pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
    def test_split_weights_give_peft_the_same_numbers(self, use_dora: bool) -> None:
        base = hf.llama()
        model = combined_llama(use_dora)
        config = peft.LoraConfig(
            r=4,
            lora_alpha=8,
            use_dora=use_dora,
            target_modules=[part for parts in combined.PARTS.values() for part in parts],
            task_type="CAUSAL_LM",
        )
        theirs = peft.get_peft_model(copy.deepcopy(base), config)
        named = {
            f"base_model.model.{name.replace('lora_magnitude', 'lora_magnitude_vector')}": tensor
            for name, tensor in trainable(model).items()
        }
        split = combined.combined_projection_adapter(model.config).to_hf(named, anything=True)
        report = peft.set_peft_model_state_dict(theirs, split)
        assert len(split) == 2 * 5 * (3 if use_dora else 2)
        assert not report.unexpected_keys
        assert not [key for key in report.missing_keys if "lora_" in key]
        assert distance(training.logits(model, IDS), training.logits(theirs, IDS)) < 1e-4
        assert distance(training.logits(model, IDS), training.logits(base, IDS)) > 0.1

    def test_base_weights_split_into_those_of_hugging_face(self) -> None:
        base = hf.llama(attention_bias=True)
        model = combined_llama(attention_bias=True)
        native = {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
        split = combined.combined_projection_adapter(model.config).to_hf(native)
        assert set(split) == set(base.state_dict())
        assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in split.items())

    def test_pieces_share_no_memory_and_keep_their_device(self) -> None:
        adapter = combined.CombinedProjectionAdapter({"qkv_proj": (4, 2, 2), "gate_up_proj": (3, 3)})
        pieces = adapter.convert_single_tensor_to_hf("qkv_proj.lora_A.weight", torch.ones(2, 4))
        assert [key for key, _ in pieces] == [f"{part}.lora_A.weight" for part in combined.PARTS["qkv_proj"]]
        assert len({piece.data_ptr() for _, piece in pieces}) == 3
        meta = adapter.to_hf({"a.gate_up_proj.lora_B.weight": torch.empty(6, 2, device="meta")})
        assert {key: (piece.device.type, tuple(piece.shape)) for key, piece in meta.items()} == {
            "a.gate_proj.lora_B.weight": ("meta", (3, 2)),
            "a.up_proj.lora_B.weight": ("meta", (3, 2)),
        }

    @pytest.mark.parametrize(
        "key",
        [
            "a.my_qkv_proj.lora_A.weight",
            "a.qkv_proj_b.weight",
            "qkv_proj",
            "a.qkv_proj.norm.weight",
            "o.weight",
        ],
    )
    def test_other_keys_pass_unchanged(self, key: str) -> None:
        tensor = torch.ones(8, 2)
        adapter = combined.CombinedProjectionAdapter({"qkv_proj": (4, 2, 2), "gate_up_proj": (4, 4)})
        ((name, same),) = adapter.convert_single_tensor_to_hf(key, tensor)
        assert (name, same is tensor) == (key, True)

    def test_the_split_can_be_mixed_into_another_base(self) -> None:
        class Theirs:
            kind = "theirs"

        class Mixed(combined.CombinedProjectionSplit, Theirs):
            def __init__(self, rows: Any) -> None:
                self.rows = rows

        adapter = combined.combined_projection_adapter(hf.llama().config, Mixed)
        assert isinstance(adapter, Theirs)
        assert adapter.rows == {"qkv_proj": (32, 16, 16), "gate_up_proj": (40, 40)}

    def test_sharded_tensors_split_like_whole_ones(self) -> None:
        model = combined_llama(use_dora=True)
        whole = combined.combined_projection_adapter(model.config).to_hf(trainable(model))
        for split in values(run_ranks(2, _split_sharded)):
            assert set(split) == set(whole)
            assert all(torch.equal(tensor, whole[name]) for name, tensor in split.items())

    def test_a_copy_reads_its_own_projection(self) -> None:
        model = combined_llama()
        before, again = training.logits(model, IDS), copy.deepcopy(model)
        lora.randomise_lora(again, seed=9)
        assert torch.equal(training.logits(model, IDS), before)
        assert distance(training.logits(again, IDS), before) > 0.1

    def test_a_model_without_such_projections_is_refused(self) -> None:
        with pytest.raises(ValueError, match="to combine"):
            combined.combine_projections(nn.Linear(8, 8))


def _split_sharded(rank: int, world: int) -> dict[str, torch.Tensor]:
    model = training.shard(combined_llama(use_dora=True), init_device_mesh("cpu", (world,)))
    adapter = combined.combined_projection_adapter(model.config)
    split = adapter.to_hf({name: p for name, p in model.named_parameters() if p.requires_grad})
    assert all(isinstance(tensor, DTensor) for tensor in split.values())
    return {name: tensor.full_tensor().detach() for name, tensor in split.items()}
