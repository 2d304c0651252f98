"""The builders: that what the suite builds computes what it stands for, and is as distinct as tests need."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from spec_tests.builders import hf, lora, tokenizers, training, wrappers
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.meta.lora_models import IDS, combined_llama, distance, native_moe, trainable

if TYPE_CHECKING:
    from pathlib import Path


class TestHuggingFaceModels:
    @pytest.mark.parametrize("family", sorted(hf.FAMILIES))
    def test_a_seed_gives_the_same_model_and_leaves_the_global_generator(self, family: str) -> None:
        before = torch.get_rng_state()
        first, second, other = (hf.causal_lm(family, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(training.logits(first, IDS), training.logits(second, IDS))
        assert distance(training.logits(first, IDS), training.logits(other, IDS)) > 0.1

    @pytest.mark.parametrize("family", sorted(hf.FAMILIES))
    def test_a_clean_load_computes_the_same(self, family: str, tmp_path: Path) -> None:
        model = hf.causal_lm(family)
        hf.save_base(model, tmp_path)
        again = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, attn_implementation="eager"
        )
        assert type(again) is type(model)
        assert torch.equal(training.logits(model, IDS), training.logits(again, IDS))

    @pytest.mark.parametrize("family", sorted(hf.FAMILIES))
    def test_sizes_cannot_be_mistaken_for_each_other(self, family: str) -> None:
        model = hf.causal_lm(family)
        config = model.config
        inner = {config.intermediate_size, getattr(config, "moe_intermediate_size", config.intermediate_size)}
        assert not {config.hidden_size} & (inner | {2 * size for size in inner})
        assert {size % 8 for size in inner | {config.hidden_size, config.head_dim}} == {0}
        assert (config.vocab_size, config.num_hidden_layers) == (64, 2)
        assert config.architectures == [type(model).__name__]
        assert config._name_or_path.startswith("tiny/")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert float(training.logits(model, IDS).std()) > 0.5

    def test_tied_llama_shares_its_embedding(self) -> None:
        tied, untied = hf.llama(tied=True), hf.llama()
        assert tied.lm_head.weight is tied.model.embed_tokens.weight
        assert untied.lm_head.weight is not untied.model.embed_tokens.weight

    def test_dense_layers_of_a_moe_have_an_ordinary_mlp(self) -> None:
        model = hf.qwen3_moe(dense_layers=[0], intermediate=48)
        assert model.get_submodule("model.layers.0.mlp.gate_proj").out_features == 48
        assert hasattr(model.get_submodule("model.layers.1.mlp"), "experts")

    def test_a_model_with_replaced_modules_is_not_saved_as_a_base(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="LoRALinear"):
            hf.save_base(native_moe(), tmp_path / "base")
        assert not (tmp_path / "base").exists()


class TestDenseLoRA:
    @pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
    @pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
    def test_numbers_and_gradients_are_those_of_peft(self, use_dora: bool, bias: bool) -> None:
        ours = hf.llama(attention_bias=bias)
        base = copy.deepcopy(ours)
        lora.apply_dense_lora(ours, ["q_proj", "down_proj"], dim=4, alpha=8, use_dora=use_dora)
        lora.randomise_lora(ours)
        config = peft.LoraConfig(
            r=4,
            lora_alpha=8,
            use_dora=use_dora,
            target_modules=["q_proj", "down_proj"],
            task_type="CAUSAL_LM",
        )
        theirs = peft.get_peft_model(copy.deepcopy(base), config)
        given = {
            f"base_model.model.{name.replace('lora_magnitude', 'lora_magnitude_vector')}": tensor
            for name, tensor in trainable(ours).items()
        }
        report = peft.set_peft_model_state_dict(theirs, given)
        assert not report.unexpected_keys
        assert not [key for key in report.missing_keys if "lora_" in key]
        assert distance(training.logits(ours, IDS), training.logits(theirs, IDS)) < 1e-5
        assert distance(training.logits(ours, IDS), training.logits(base, IDS)) > 0.1
        assert training.train_steps(ours, steps=3) == pytest.approx(training.train_steps(theirs, steps=3), abs=1e-4)

    def test_only_lora_is_trainable_and_the_base_keeps_its_name(self) -> None:
        model = hf.llama()
        made = lora.apply_dense_lora(model, ["model.layers.1.mlp.up_proj", "q_proj"], dim=4, alpha=8)
        sites = {
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
        }
        assert set(made) == sites
        assert set(trainable(model)) == {f"{site}.{part}.weight" for site in sites for part in ("lora_A", "lora_B")}
        assert f"{made[0]}.weight" in dict(model.named_parameters())
        site = model.get_submodule("model.layers.1.mlp.up_proj")
        assert (site.dim, site.scale, site.use_dora) == (4, 2.0, False)
        assert site.lora_A.weight.shape == (4, 32)
        assert site.lora_B.weight.shape == (40, 4)

    def test_fresh_lora_changes_nothing_and_randomised_lora_is_far_from_zero(self) -> None:
        for use_dora in (False, True):
            model = hf.llama()
            base = training.logits(model, IDS)
            lora.apply_dense_lora(model, ["q_proj"], dim=4, alpha=8, use_dora=use_dora)
            assert distance(training.logits(model, IDS), base) < 1e-5
            fresh = {name: tensor.clone() for name, tensor in trainable(model).items()}
            lora.randomise_lora(model, std=0.5)
            for name, tensor in trainable(model).items():
                assert float(tensor.abs().mean()) > 0.05
                assert torch.equal(tensor, fresh[name]) == ("lora_A" in name)

    def test_a_base_module_named_like_lora_is_frozen(self) -> None:
        model = nn.ModuleDict({"lora_head": nn.Linear(8, 8), "plain": nn.Linear(8, 8)})
        lora.apply_dense_lora(model, ["plain"], dim=2, alpha=2)
        assert set(trainable(model)) == {"plain.lora_A.weight", "plain.lora_B.weight"}

    def test_a_target_that_names_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="z_proj"):
            lora.apply_dense_lora(hf.llama(), ["q_proj", "z_proj"], dim=4, alpha=8)

    def test_lora_comes_from_its_seed_and_leaves_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        first, second, other = hf.llama(), hf.llama(), hf.llama()
        for model, seed in ((first, 1), (second, 1), (other, 2)):
            lora.apply_dense_lora(model, ["q_proj"], dim=4, alpha=8, use_dora=True, seed=seed)
            lora.randomise_lora(model, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        for name, tensor in trainable(first).items():
            assert torch.equal(tensor, trainable(second)[name])
            assert not torch.equal(tensor, trainable(other)[name])

    def test_a_tied_head_stays_tied(self) -> None:
        model = hf.llama(tied=True)
        lora.apply_dense_lora(model, ["lm_head"], dim=4, alpha=8)
        assert model.lm_head.weight is model.model.embed_tokens.weight


class TestTokenizers:
    def test_a_saved_tokenizer_loads_and_encodes_the_same(self, tmp_path: Path) -> None:
        made = tokenizers.tokenizer()
        made.save_pretrained(tmp_path)
        again = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert len(again) == 64
        assert again("w0 w59 nonsense")["input_ids"] == made("w0 w59 nonsense")["input_ids"] == [4, 63, 3]
        chat = [{"role": "w1", "content": "w2"}]
        assert again.apply_chat_template(chat, tokenize=False) == "w1 w2 "

    def test_the_failing_one_leaves_a_partial_file(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="injected"):
            tokenizers.FailingTokenizer().save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"]
        with pytest.raises(KeyError, match="mine"):
            tokenizers.FailingTokenizer(KeyError("mine")).save_pretrained(tmp_path)

    def test_the_recording_one_saves_the_same_files(self, tmp_path: Path) -> None:
        recording = tokenizers.RecordingTokenizer()
        assert recording.saved_to == []
        recording.save_pretrained(tmp_path / "recorded")
        tokenizers.tokenizer().save_pretrained(tmp_path / "plain")
        assert recording.saved_to == [str(tmp_path / "recorded")]
        files = [{p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("recorded", "plain")]
        assert files[0] == files[1]
        assert "tokenizer.json" in files[0]


class TestTraining:
    def test_steps_change_what_is_trainable_and_nothing_else(self) -> None:
        model = native_moe()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        losses = training.train_steps(model, steps=2)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert len(losses) == 2
        assert changed == set(trainable(model))
        assert not model.training

    def test_a_model_learns_a_batch_it_sees_again(self) -> None:
        model = combined_llama()
        lora.randomise_lora(model, std=0.01)
        first, last = (training.train_steps(model, steps=1, seed=3)[0] for _ in range(2))
        assert last < first

    def test_nothing_to_train_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no trainable"):
            training.train_steps(hf.llama().requires_grad_(False))

    @pytest.mark.parametrize(("build", "world"), [(native_moe, 3), (combined_llama, 2)], ids=["moe", "combined"])
    def test_sharded_training_learns_what_unsharded_training_learns(self, build: Any, world: int) -> None:
        alone = build()
        losses = training.train_steps(alone)
        lora.randomise_lora(alone, seed=5)
        expected, wanted = training.logits(alone, IDS), trainable(alone)
        for sharded_losses, logits, gathered in values(run_ranks(world, _trained_sharded, build)):
            assert sharded_losses == pytest.approx(losses, abs=1e-4)
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
            assert set(gathered) == set(wanted)
            for name in wanted:
                torch.testing.assert_close(gathered[name], wanted[name], rtol=1e-3, atol=1e-3)


def _trained_sharded(rank: int, world: int, build: Any) -> Any:
    model = training.shard(build(), init_device_mesh("cpu", (world,)))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    losses = training.train_steps(model)
    lora.randomise_lora(model, seed=5)
    logits = training.logits(model, IDS)
    gathered = {name: p.full_tensor().detach() for name, p in model.named_parameters() if p.requires_grad}
    return losses, logits, gathered


class TestWrappers:
    @pytest.mark.parametrize(
        ("kind", "segment"), [("compile", "_orig_mod"), ("checkpoint", "_checkpoint_wrapped_module")]
    )
    @pytest.mark.parametrize("fqn", ["model.layers.1", "model.layers.0.self_attn.q_proj", "model"])
    def test_a_wrapper_stands_where_it_was_asked_for(self, kind: Any, segment: str, fqn: str) -> None:
        model = hf.llama()
        inside = model.get_submodule(fqn)
        assert wrappers.wrap(model, fqn, kind) is model
        assert model.get_submodule(fqn) is not inside
        assert model.get_submodule(f"{fqn}.{segment}") is inside

    def test_wrappers_nest_and_clean_names_still_lead_inside(self) -> None:
        model = combined_llama()
        before = training.logits(model, IDS)
        wrappers.wrap(model, "model.layers.0", "checkpoint")
        wrappers.wrap(model, "model.layers.0.self_attn.qkv_proj", "checkpoint")
        wrappers.wrap(model, "model.layers.0.self_attn.qkv_proj", "compile")
        names = [name for name, _ in model.named_modules() if name.endswith("qkv_proj.lora_A") or "lora_A" in name]
        layer = "model.layers.0._checkpoint_wrapped_module"
        attention = f"{layer}.self_attn.qkv_proj._orig_mod._checkpoint_wrapped_module.lora_A"
        assert attention in names
        assert len([name for name in names if "layers.0" in name]) == 2
        assert torch.equal(training.logits(model, IDS), before)

    def test_the_whole_model_can_be_wrapped(self) -> None:
        model = hf.llama()
        compiled = wrappers.wrap(model, "", "compile")
        outer = wrappers.wrap(compiled, "", "checkpoint")
        wrappers.wrap(outer, "lm_head", "checkpoint")
        assert "_checkpoint_wrapped_module._orig_mod.lm_head._checkpoint_wrapped_module" in dict(outer.named_modules())

    def test_wrapping_leaves_what_randomising_draws(self) -> None:
        plain, wrapped = native_moe(), native_moe()
        wrappers.wrap(wrapped, "model.layers.0", "compile")
        wrappers.wrap(wrapped, "model.layers.1.mlp.experts", "checkpoint")
        for model in (plain, wrapped):
            lora.randomise_lora(model, seed=8)
        with torch.compiler.set_stance("force_eager"):  # to trace it takes seconds, and changes no number
            assert torch.equal(training.logits(plain, IDS), training.logits(wrapped, IDS))
