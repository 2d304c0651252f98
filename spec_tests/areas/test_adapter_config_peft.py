# SPDX-License-Identifier: Apache-2.0
"""ADP for models whose LoRA PEFT injected: task types, heads, scales and embeddings (spec/adapter_config.md)."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from spec_tests.builders import families, hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.injected import config_for
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.mergeable import gpt2
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, ATTENTION, RANK
from spec_tests.harness.export import refusal, save_adapter, save_metadata


def injected(model, **settings):
    """The model with PEFT's LoRA, far from where it began."""
    torch.manual_seed(0)
    wrapped, source = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **settings)), generator(0)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            draw_normal(parameter, source, std=0.3)
    return wrapped.eval()


def loaded(model, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(model, str(directory)).eval()


@torch.no_grad()
def answer(model, **given):
    return model(**given)[0].float()


def bert(labels=3):
    settings = {**hf.SIZES, "num_labels": labels}
    return hf.build(transformers.BertForSequenceClassification, transformers.BertConfig, "tiny/bert", settings, 0)


def roberta(labels=3):
    """Its head is two modules under one name, and LoRA is on them."""
    settings, kind = {**hf.SIZES, "num_labels": labels}, transformers.RobertaForSequenceClassification
    return hf.build(kind, transformers.RobertaConfig, "tiny/roberta", settings, 0)


IDS = {"input_ids": torch.arange(10).reshape(2, 5)}
PIXELS = {"pixel_values": torch.ones(1, 3, 16, 16)}


def clip_vision():
    settings = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings |= {"image_size": 16, "patch_size": 8}
    return hf.build(transformers.CLIPVisionModel, transformers.CLIPVisionConfig, "tiny/clip", settings, 0)


def clip_text():
    """It takes no `inputs_embeds`, which PEFT's classes for tasks pass on."""
    return hf.build(transformers.CLIPTextModel, transformers.CLIPTextConfig, "tiny/clip", hf.SIZES, 0)


def vilt():
    """It answers questions, and takes no `start_positions`, which PEFT's class for answers passes on."""
    settings = {**hf.SIZES, "num_labels": 3, "image_size": 16, "patch_size": 8}
    return hf.build(transformers.ViltForQuestionAnswering, transformers.ViltConfig, "tiny/vilt", settings, 0)


@pytest.mark.clause("ADP-025")
@pytest.mark.parametrize(
    ("build", "given", "target"),
    [
        (clip_vision, PIXELS, "q_proj"),
        (clip_text, IDS, "q_proj"),
        (vilt, {**PIXELS, "input_ids": IDS["input_ids"][:1]}, "query"),
    ],
)
def test_model_of_no_task_can_be_called_after_loading(impl, fresh_dir, build, given, target):
    live = injected(build(), target_modules=[target])
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    assert written.config["task_type"] is None
    torch.testing.assert_close(answer(loaded(build(), written.directory), **given), answer(live, **given))


@pytest.mark.clause("ADP-025")
@pytest.mark.parametrize("said", ["FEATURE_EXTRACTION", peft.TaskType.FEATURE_EXTRACTION], ids=["text", "enum"])
def test_task_type_that_the_user_set_stays(impl, fresh_dir, said):
    live = injected(hf.llama(), target_modules=["q_proj"])
    config = config_for(impl, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj"], task_type=said))
    assert save_metadata(impl, live, fresh_dir(), config).config["task_type"] == "FEATURE_EXTRACTION"


@pytest.mark.clause("ADP-026")
@pytest.mark.parametrize("words", [hf.VOCAB + 4, hf.VOCAB - 4], ids=["more", "fewer"])
@pytest.mark.parametrize(
    ("targets", "tied"),
    [(["q_proj"], False), (["q_proj"], True), (["q_proj", "lm_head"], False)],
    ids=["untied", "tied", "head with LoRA"],
)
def test_resized_embeddings_travel_along(impl, fresh_dir, targets, words, tied):
    base = fresh_dir()
    hf.llama(tied).save_pretrained(base)

    def resized():
        model = transformers.LlamaForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(words, mean_resizing=False)
        return model

    live = injected(resized(), target_modules=targets)
    for weight in (live.get_input_embeddings().weight, live.get_output_embeddings().weight):
        draw_normal(weight, generator(3), std=0.5)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    own = peft.get_peft_model_state_dict(live)
    assert [key for key in written.tensors if key not in own and "embed_tokens" not in key] == []
    given = {"input_ids": torch.tensor([[1, words - 4, words - 1]])}
    torch.testing.assert_close(answer(loaded(resized(), written.directory), **given), answer(live, **given))


@pytest.mark.clause("ADP-026")
def test_bias_of_a_resized_head_travels_along(impl, fresh_dir):
    base = fresh_dir()
    hf.build(transformers.PhiForCausalLM, transformers.PhiConfig, "tiny/phi", hf.SIZES, 0).save_pretrained(base)

    def resized():
        model = transformers.PhiForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(hf.VOCAB + 4, mean_resizing=False)
        return model

    live = injected(resized(), target_modules=["q_proj"])
    for tensor in (live.get_input_embeddings().weight, *live.get_output_embeddings().parameters()):
        draw_normal(tensor, generator(3), std=0.5)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    given = {"input_ids": torch.tensor([[1, hf.VOCAB, hf.VOCAB + 3]])}
    torch.testing.assert_close(answer(loaded(resized(), written.directory), **given), answer(live, **given))


@pytest.mark.clause("ADP-026")
def test_embeddings_of_the_base_model_stay_behind(impl, fresh_dir):
    base = fresh_dir()
    hf.llama().save_pretrained(base)
    live = injected(transformers.LlamaForCausalLM.from_pretrained(base), target_modules=["q_proj"])
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    assert not [key for key in written.tensors if "lora_" not in key]


@pytest.mark.clause("ADP-028")
@pytest.mark.parametrize(
    ("build", "targets"),
    [(bert, ["query", "classifier"]), (bert, "all-linear"), (roberta, ["query", "dense", "out_proj"])],
    ids=["named", "all-linear", "inside"],
)
def test_head_with_lora_is_loaded_by_peft(impl, fresh_dir, build, targets):
    live = injected(build(), target_modules=targets)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    assert not written.config.get("modules_to_save")
    torch.testing.assert_close(answer(loaded(build(), written.directory), **IDS), answer(live, **IDS))


@pytest.mark.clause("ADP-028")
def test_head_with_lora_under_a_task_that_asks_for_the_whole_is_refused(impl, fresh_dir):
    live, directory = injected(bert(), target_modules=["query", "classifier"]), fresh_dir()
    config = config_for(
        impl, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["query", "classifier"], task_type="SEQ_CLS")
    )
    refusal(lambda: save_metadata(impl, live, directory, config), directory, naming=["task_type", "classifier"])


@pytest.mark.clause("ADP-029")
@pytest.mark.parametrize("kept", [None, ["pooler"]], ids=["as PEFT completes it", "with more"])
def test_config_that_peft_completed_is_accepted(impl, fresh_dir, kept):
    live = injected(bert(), target_modules=["query"], task_type="SEQ_CLS", modules_to_save=kept)
    config = config_for(impl, live.peft_config["default"])
    assert {"classifier", "score"} <= set(config.modules_to_save)
    written = save_adapter(impl, live, fresh_dir(), config)
    torch.testing.assert_close(answer(loaded(bert(), written.directory), **IDS), answer(live, **IDS))


@pytest.mark.clause("ADP-022")
@pytest.mark.parametrize(
    "setting",
    [{"alora_invocation_tokens": [7, 8]}, {"trainable_token_indices": [1, 2]}, {"use_qalora": True}],
    ids=lambda setting: next(iter(setting)),
)
def test_any_other_setting_that_computes_something_is_refused(impl, fresh_dir, setting):
    directory, spec = fresh_dir(), TRAINED["llama"]
    config = config_for(impl, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(spec.dense)))
    # Set afterwards: PEFT checks some of them against what is installed.
    for name, value in setting.items():
        setattr(config, name, value)
    trained = spec.trained(impl.adapters)
    refusal(lambda: save_metadata(impl, trained, directory, config), directory, naming=next(iter(setting)))


@pytest.mark.clause("ADP-030")
@pytest.mark.parametrize("trained", [None, "lora_B", "lora_magnitude_vector"])
def test_adapter_that_changes_nothing_is_warned_of(impl, fresh_dir, recwarn, trained):
    settings = {"target_modules": ["q_proj"], "use_dora": trained == "lora_magnitude_vector"}
    model = peft.get_peft_model(hf.llama(), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **settings))
    if trained:
        draw_normal(next(p for name, p in model.named_parameters() if trained in name), generator(0), std=0.5)
    impl.save_adapter(model, fresh_dir(), config_for(impl, model.peft_config["default"]))
    assert bool([one for one in recwarn if "zero" in str(one.message)]) is (trained is None)


@pytest.mark.clause("ADP-031")
@pytest.mark.parametrize("name", ["a+b", "(x)", "q[0]", "a|b", "x*"])
def test_pattern_of_a_name_with_signs_is_found(impl, fresh_dir, name):
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), name: nn.Linear(4, 4)})
    root = nn.ModuleDict({"layers": model})
    pattern = {"plain": 2}
    live = injected(root, target_modules=[f"layers.{name}", "layers.plain"], rank_pattern=pattern)
    config = save_metadata(impl, live, fresh_dir(), config_for(impl, peft.LoraConfig(r=2, lora_alpha=ALPHA))).config
    from peft.utils.other import get_pattern_key

    found = get_pattern_key(config["rank_pattern"].keys(), f"layers.{name}")
    assert config["rank_pattern"].get(found) == RANK


@pytest.mark.clause("ADP-026")
def test_resized_embeddings_of_a_nested_model_travel_along(impl, fresh_dir):
    base = fresh_dir()
    families.vision_language().save_pretrained(base)

    def resized():
        model = transformers.LlavaForConditionalGeneration.from_pretrained(base)
        model.resize_token_embeddings(hf.VOCAB + 4, mean_resizing=False)
        return model

    live = injected(resized(), target_modules=["q_proj"])
    for weight in (live.get_input_embeddings().weight, live.get_output_embeddings().weight):
        draw_normal(weight, generator(3), std=0.5)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    given = {"input_ids": torch.tensor([[1, hf.VOCAB, hf.VOCAB + 3]])}
    torch.testing.assert_close(answer(loaded(resized(), written.directory), **given), answer(live, **given))


@pytest.mark.clause("ADP-021")
@pytest.mark.parametrize("kind", ["LlamaForTokenClassification", "BertForTokenClassification"])
def test_frozen_head_of_a_token_classifier_is_there_to_be_read(impl, fresh_dir, kind):
    def base():
        torch.manual_seed(0)
        config = (hf.llama() if "Llama" in kind else families.bert_encoder()).config
        config.num_labels, config.architectures = 3, [kind]
        return getattr(transformers, kind)(config).eval()

    live = base().requires_grad_(False)
    apply_dense_lora(live, ATTENTION if "Llama" in kind else ("query", "value"), RANK, ALPHA)
    written = save_adapter(impl, live, fresh_dir(), impl.peft_config(dim=RANK, alpha=ALPHA))
    given = {"input_ids": torch.tensor([[1, 5, 9]])}
    torch.testing.assert_close(answer(loaded(base(), written.directory), **given), answer(live, **given))


class ScaledHead(nn.Linear):
    """A head with what training has counted beside its weights, as a batch norm has."""

    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False)
        self.register_buffer("factor", torch.ones(1))

    def forward(self, states):
        return super().forward(states) * self.factor


@pytest.mark.clause("ADP-021")
@pytest.mark.parametrize("by", ["the trainer", "PEFT"])
def test_buffers_of_a_head_travel_with_it(impl, fresh_dir, by):
    def base():
        model = families.llama_classifier()
        model.score = ScaledHead(model.config.hidden_size, model.config.num_labels)
        draw_normal(model.score.weight, generator(5), std=0.3)
        return model.eval()

    if by == "PEFT":
        live = injected(base(), target_modules=["q_proj"], task_type="SEQ_CLS")
        head, config = live.base_model.model.score.modules_to_save["default"], live.peft_config["default"]
        config = config_for(impl, config)
    else:
        live, config = base().requires_grad_(False), impl.peft_config(dim=RANK, alpha=ALPHA)
        apply_dense_lora(live, ATTENTION, RANK, ALPHA)
        head = live.score.requires_grad_()
    head.factor.fill_(3.0)
    written = save_adapter(impl, live, fresh_dir(), config)
    torch.testing.assert_close(answer(loaded(base(), written.directory), **IDS), answer(live, **IDS))


@pytest.mark.clause("LOAD-001")
@pytest.mark.needs("peft_injected")
def test_layers_that_hold_their_weights_turned_are_loaded_without_a_warning(impl, fresh_dir):
    live = injected(gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    torch.testing.assert_close(answer(loaded(gpt2(), written.directory), **IDS), answer(live, **IDS))
