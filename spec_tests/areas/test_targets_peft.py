# SPDX-License-Identifier: Apache-2.0
"""TGT for what PEFT trains: other tuners, variants of LoRA, LoRA on bare parameters (spec/targets.md)."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from torch.distributed.fsdp import fully_shard

from spec_tests.builders import families, hf
from spec_tests.builders.injected import config_for
from spec_tests.builders.mergeable import gpt2
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import Adapter, refusal, save_adapter, save_metadata
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

LORA = {"r": RANK, "lora_alpha": ALPHA}
TUNERS = {
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"]),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def trained(model):
    source = generator(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            draw_normal(parameter, source, std=0.3)
    return model.eval()


@pytest.mark.clause("TGT-024")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("tuner", TUNERS)
def test_other_tuner_is_refused_in_a_whole_model(impl, fresh_dir, tuner):
    model, directory = trained(peft.get_peft_model(hf.llama(), TUNERS[tuner]())), fresh_dir() / "model"
    refusal(lambda: impl.save_consolidated(model, directory), directory, naming="LoRA")


@pytest.mark.clause("TGT-024")
@pytest.mark.parametrize("tuner", ["ia3", "loha"])
def test_other_tuner_beside_lora_is_refused(impl, fresh_dir, tuner):
    model = TreeSpec((Leaf("layers.0.q"),)).build()
    model.other = hf.llama()
    peft.inject_adapter_in_model(TUNERS[tuner](), model.other)
    model.requires_grad_(False)  # so that nothing but the tuner is wrong
    directory = fresh_dir()
    refusal(lambda: save_metadata(impl, model, directory), directory, naming="LoRA")


@pytest.mark.clause("TGT-024")
def test_activated_lora_is_refused(impl, fresh_dir):
    config = peft.LoraConfig(**LORA, target_modules=["q_proj"], alora_invocation_tokens=[7, 8], task_type="CAUSAL_LM")
    model, directory = trained(peft.get_peft_model(hf.llama(), config)), fresh_dir()
    # As a trainer says it, which knows nothing of the variant.
    refusal(lambda: save_metadata(impl, model, directory, impl.peft_config(dim=RANK, alpha=ALPHA)), directory)


@pytest.mark.clause("TGT-018", "TGT-024")
@pytest.mark.parametrize("kept", [None, ["lm_head"]], ids=["LoRA alone", "with a module kept"])
def test_adapters_on_different_modules_are_refused(impl, fresh_dir, kept):
    model = peft.get_peft_model(hf.llama(), peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=kept))
    model.add_adapter("b", peft.LoraConfig(**LORA, target_modules=["v_proj"], modules_to_save=kept))
    model.requires_grad_(False)
    directory = fresh_dir()
    refusal(
        lambda: save_metadata(impl, model, directory, config_for(impl, model.peft_config["default"])),
        directory,
        naming="adapter",
    )


@pytest.mark.clause("TGT-018")
def test_frozen_lora_of_an_embedding_is_refused(impl, fresh_dir):
    config = peft.LoraConfig(**LORA, target_modules=["q_proj", "embed_tokens"])
    model, directory = trained(peft.get_peft_model(hf.llama(), config)).requires_grad_(False), fresh_dir()
    refusal(lambda: save_metadata(impl, model, directory, config_for(impl, config)), directory, naming="embed_tokens")


@pytest.mark.clause("TGT-025")
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["down_proj"]], ids=["both", "one"])
def test_lora_on_bare_parameters_is_saved_as_peft_saves_it(impl, fresh_dir, names):
    settings = {"target_modules": ["q_proj"], "target_parameters": [f"mlp.experts.{name}" for name in names]}
    model = trained(peft.get_peft_model(hf.gpt_oss(), peft.LoraConfig(**LORA, **settings)))
    ours, theirs, given = fresh_dir(), fresh_dir(), {"input_ids": torch.arange(8).reshape(1, 8)}
    written = save_adapter(impl, model, ours, config_for(impl, model.peft_config["default"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*adapter keys", UserWarning)
        again = peft.PeftModel.from_pretrained(hf.gpt_oss(), str(ours)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, model(**given).logits)
    model.save_pretrained(str(theirs))
    peers = type(written)(theirs).tensors
    assert written.tensors.keys() == peers.keys()
    assert all(torch.equal(tensor, peers[key]) for key, tensor in written.tensors.items())


@pytest.mark.clause("TGT-025")
def test_lora_on_a_bare_parameter_of_a_turned_layer_is_loaded_by_peft(impl, fresh_dir):
    """PEFT refuses `fan_in_fan_out` there, which it wants for LoRA on the layer itself."""
    config = peft.LoraConfig(**LORA, target_modules=[], target_parameters=["c_attn.weight"])
    model, directory = trained(peft.get_peft_model(gpt2(), config)), fresh_dir()
    save_adapter(impl, model, directory, config_for(impl, model.peft_config["default"]))
    again, given = peft.PeftModel.from_pretrained(gpt2(), str(directory)).eval(), {"input_ids": torch.arange(8)[None]}
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, model.eval()(**given).logits)


@pytest.mark.clause("TGT-025")
@pytest.mark.parametrize("form", ["v4_compatible", "legacy_paramwrapper_layout"])
def test_lora_on_bare_parameters_is_refused_in_another_form(impl, fresh_dir, form):
    settings = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    model, directory = trained(peft.get_peft_model(hf.gpt_oss(), peft.LoraConfig(**LORA, **settings))), fresh_dir()
    refusal(
        lambda: save_metadata(impl, model, directory, config_for(impl, model.peft_config["default"]), **{form: True}),
        directory,
        naming="experts.down_proj",
    )


class ThreeWeights(torch.nn.Module):
    """Experts as DBRX has them: three bare weights in one module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = torch.nn.Module()
        for name in ("w1", "v1", "w2"):
            self.experts.register_parameter(name, torch.nn.Parameter(torch.randn(3, 8, 8)))

    def forward(self, x):
        for name in ("w1", "v1", "w2"):
            x = x @ getattr(self.experts, name).sum(0)
        return x


@pytest.mark.clause("TGT-025")
def test_lora_on_three_parameters_of_one_module_is_saved_as_peft_saves_it(impl, fresh_dir):
    parameters = [f"experts.{name}" for name in ("w1", "v1", "w2")]
    model = trained(peft.get_peft_model(ThreeWeights(), peft.LoraConfig(**LORA, target_parameters=parameters)))
    ours, theirs = fresh_dir(), fresh_dir()
    written = save_adapter(impl, model, ours, config_for(impl, model.peft_config["default"]))
    model.save_pretrained(str(theirs))
    peers = type(written)(theirs).tensors
    assert sorted(written.config["target_parameters"]) == sorted(parameters)
    assert written.tensors.keys() == peers.keys()
    assert all(torch.equal(tensor, peers[key]) for key, tensor in written.tensors.items())


@pytest.mark.clause("TGT-025", "ADP-019")
@pytest.mark.needs("save_adapter")
def test_lora_on_bare_parameters_is_saved_in_one_call_as_peft_saves_it(impl, fresh_dir):
    parameters = ["experts.w1", "experts.w2"]
    model = trained(peft.get_peft_model(ThreeWeights(), peft.LoraConfig(**LORA, target_parameters=parameters)))
    ours, theirs = fresh_dir() / "out", fresh_dir()
    impl.save_adapter(model, ours, config_for(impl, model.peft_config["default"]))
    model.save_pretrained(str(theirs))
    tensors, peers = Adapter(ours).tensors, Adapter(theirs).tensors
    assert sorted(Adapter(ours).config["target_parameters"]) == parameters
    assert tensors.keys() == peers.keys()
    assert all(torch.equal(tensor, peers[key]) for key, tensor in tensors.items())


class Convolutions(torch.nn.Module):
    """Two convolutions, one of them in groups."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(kind(3, 8, 3), kind(8, 8, 3, groups=4))

    def forward(self, x):
        return self.body(x)


@pytest.mark.clause("TGT-021")
@pytest.mark.needs("peft_injected")
@pytest.mark.parametrize(("kind", "size"), [(torch.nn.Conv1d, [9]), (torch.nn.Conv2d, [9, 9])])
def test_lora_of_convolutions_is_loaded_by_peft(impl, fresh_dir, kind, size):
    live = trained(peft.get_peft_model(Convolutions(kind), peft.LoraConfig(**LORA, target_modules=["0", "1"])))
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    again = peft.PeftModel.from_pretrained(Convolutions(kind), str(written.directory)).eval()
    x = torch.ones(1, 3, *size)
    torch.testing.assert_close(again(x), live(x))


def shard(layer, axis):
    layer.weight = torch.nn.Parameter(layer.weight.detach().chunk(2, dim=axis)[0].clone())


@pytest.mark.clause("TGT-026")
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("kind", ["convolution", "bare parameter"])
def test_shard_of_what_is_no_linear_layer_is_refused(impl, fresh_dir, kind, part):
    if kind == "convolution":
        config, base = peft.LoraConfig(**LORA, target_modules=["1"]), Convolutions(torch.nn.Conv2d)
        model, name = trained(peft.get_peft_model(base, config)), "body.1"
    else:
        config = peft.LoraConfig(**LORA, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
        model, name = trained(peft.get_peft_model(hf.gpt_oss(), config)), "model.layers.0.mlp.experts"
    matrices = getattr(model.base_model.model.get_submodule(name), part)
    shard(matrices.default, 1 if part == "lora_A" else 0)
    directory, config = fresh_dir(), config_for(impl, model.peft_config["default"])
    refusal(lambda: save_metadata(impl, model, directory, config), directory, naming=name)


@pytest.mark.clause("TGT-004")
@pytest.mark.needs("peft_injected")
@pytest.mark.parametrize("at", ["base_model", "base_model.model"])
@pytest.mark.parametrize("kind", ["compile", "checkpoint"])
def test_wrappers_within_those_of_peft_leave_no_trace(impl, fresh_dir, kind, at):
    model = trained(peft.get_peft_model(hf.llama(), peft.LoraConfig(**LORA, target_modules=["q_proj"])))
    config = config_for(impl, model.peft_config["default"])
    written = save_adapter(impl, wrap(model, at, kind), fresh_dir(), config)
    expected = [f"model.layers.{number}.self_attn.q_proj" for number in (0, 1)]
    assert written.config["target_modules"] == expected == written.modules


@pytest.mark.clause("TGT-026")
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_shard_that_stands_for_the_whole_is_refused(impl, fresh_dir, part):
    model = trained(peft.get_peft_model(hf.llama(), peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"])))
    layer = getattr(model.base_model.model.model.layers[1].self_attn.v_proj, part).default
    axis = 1 if part == "lora_A" else 0
    layer.weight = torch.nn.Parameter(layer.weight.detach().chunk(2, dim=axis)[0].clone())
    directory = fresh_dir()
    config = config_for(impl, model.peft_config["default"])
    refusal(lambda: save_metadata(impl, model, directory, config), directory, naming="layers.1.self_attn.v_proj")


@pytest.mark.clause("TGT-026")
def test_shard_is_refused_beside_a_module_that_has_its_shape(impl, fresh_dir):
    # Half of o's outputs are as many as all of k's, whose LoRA comes first and is whole.
    model = trained(peft.get_peft_model(hf.llama(), peft.LoraConfig(**LORA, target_modules=["k_proj", "o_proj"])))
    layer = model.base_model.model.model.layers[0].self_attn.o_proj.lora_B.default
    layer.weight = torch.nn.Parameter(layer.weight.detach().chunk(2)[0].clone())
    directory, config = fresh_dir(), config_for(impl, model.peft_config["default"])
    refusal(lambda: save_metadata(impl, model, directory, config), directory, naming="layers.0.self_attn.o_proj")


@pytest.mark.clause("TGT-018")
@pytest.mark.parametrize("frozen", [True, False])
def test_bias_of_lora_is_refused_frozen_or_not(impl, fresh_dir, frozen):
    config = peft.LoraConfig(**LORA, target_modules=["q_proj"], lora_bias=True)
    model, directory = trained(peft.get_peft_model(hf.llama(), config)), fresh_dir()
    model.requires_grad_(not frozen)
    plain = config_for(impl, peft.LoraConfig(**LORA, target_modules=["q_proj"]))
    refusal(lambda: save_metadata(impl, model, directory, plain), directory, naming="q_proj")


def classifier_with_a_head():
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["score"], "task_type": "SEQ_CLS"}
    return trained(peft.get_peft_model(families.llama_classifier(), peft.LoraConfig(**LORA, **settings)))


def save_with_a_sharded_head(rank, world, impl, directory):
    model = classifier_with_a_head()
    fully_shard(model.base_model.model.score)  # the wrapper that PEFT put around the head
    fully_shard(model)
    impl.save_adapter(model, directory, config_for(impl, model.peft_config["default"]))


@pytest.mark.clause("TGT-021")
@pytest.mark.needs("save_adapter")
def test_head_that_was_sharded_by_itself_has_the_names_of_a_whole_one(impl, fresh_dir):
    model, directory = classifier_with_a_head(), fresh_dir() / "out"
    values(run_ranks(2, save_with_a_sharded_head, impl, directory))
    written, theirs = Adapter(directory).tensors, fresh_dir()
    model.save_pretrained(str(theirs))
    peers = Adapter(theirs).tensors
    assert written.keys() == peers.keys()
    assert all(torch.equal(tensor, peers[key]) for key, tensor in written.items())
