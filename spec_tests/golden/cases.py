# SPDX-License-Identifier: Apache-2.0
"""The checkpoints whose files are recorded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.code import remote_code_model
from spec_tests.builders.families import MODELS, text_inputs
from spec_tests.builders.quantised import quantised_model
from spec_tests.builders.tokenizers import CHAT_TEMPLATE, SPECIAL, tokenizer
from spec_tests.harness.export import save_adapter, stage_metadata
from spec_tests.harness.paths import golden_dir
from spec_tests.implementations.base import Implementation

Save = Callable[..., None]
"""Saves one checkpoint with an implementation into an empty directory; keywords are those of the save."""
_ORIGINALS = "4.57"  # the era whose configs version 5 is given as the original ones
_IS_4 = transformers.__version__.startswith("4.")
# Its vision tower's modules have other names since 5.6, and with them its LoRA.
_NAMED_BY_TRANSFORMERS = ("vlm",)
# Experts are Linears in version 4, and get LoRA with the dense ones of that name.
_OTHER_IN_4 = {"qwen3_moe_dense_alone"} if _IS_4 else set[str]()


def adapters() -> dict[str, Save]:
    """Every trained model of the catalogue that the installed versions have, as an adapter."""
    left_out = {*_NAMED_BY_TRANSFORMERS, *_OTHER_IN_4}
    return {name: _adapter(name) for name in sorted(TRAINED) if TRAINED[name].loads and name not in left_out}


def wholes() -> dict[str, Save]:
    """Every family as a whole model, and what else transformers decides the files of.

    With the ending ``.v4`` in the form that version 4 reads. Version 5 needs the original config for it: that which
    version 4 is recorded to write.
    """
    found: dict[str, Save] = {name: Whole(MODELS[name].build, MODELS[name].inputs) for name in sorted(MODELS)}
    found |= {
        "bfloat16": Whole(hf.llama, dtype=torch.bfloat16),
        "dict_config": _metadata(lambda: quantised_model(torch.uint8, config="dict")),
        "infinity": Whole(lambda: hf.llama(an_interval=[0.0, float("inf")])),
        "processor": Whole(hf.llama, tokenizer=_processor),
        "quantised": _metadata(lambda: quantised_model(torch.uint8)),
        "remote_code": _remote_code,
        "resized": Whole(_resized),
        "rope_theta": Whole(lambda: hf.llama(rope_theta=500000.0)),
        **{f"tokenizer_{name}": Whole(hf.llama, tokenizer=make) for name, make in TOKENIZERS.items()},
    }
    found |= {f"adapter_{name}": _adapter(name) for name in _NAMED_BY_TRANSFORMERS}
    return found | {f"{name}.v4": _for_version_4(save, name) for name, save in found.items() if _has_original(name)}


def _adapter(name: str) -> Save:
    spec = TRAINED[name]

    def save(impl: Implementation, directory: Path) -> None:
        config = spec.peft_config(impl.peft_config)
        save_adapter(impl, spec.trained(impl.adapters), directory, config, **spec.save)

    return save


@dataclass(frozen=True)
class Whole:
    """A whole model; called, it is saved."""

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, torch.Tensor]] = text_inputs
    tokenizer: Callable[[], Any] | None = None
    dtype: torch.dtype | None = None

    def __call__(self, impl: Implementation, directory: Path, **form: Any) -> None:
        """Save it."""
        given = {"tokenizer": self.tokenizer() if self.tokenizer else None, "dtype": self.dtype}
        impl.save_consolidated(self.build(), directory, max_shard_bytes=50_000, **given, **form)


def _metadata(build: Callable[[], Any]) -> Save:
    # No weights: transformers has no model of this kind that it would write.
    def save(impl: Implementation, directory: Path, **form: Any) -> None:
        stage_metadata(impl, build(), directory, **form)

    return save


def _remote_code(impl: Implementation, directory: Path, **form: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        model = remote_code_model(place)
        impl.save_consolidated(model, directory, **{"original_model_path": place, **form})


def _has_original(name: str) -> bool:
    # A LLaVA has the names of version 4 only where it was read under them (IDX-016).
    if name == "vlm" or name.startswith("adapter_"):
        return False
    return _IS_4 or name == "remote_code" or _original(name).exists()


def _original(name: str) -> Path:
    return golden_dir() / "transformers" / _ORIGINALS / name / "config.json"


def _for_version_4(save: Save, name: str) -> Save:
    def save_so(impl: Implementation, directory: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            more = {}
            if not _IS_4 and name != "remote_code":  # which is made from an original
                config = json.loads(_original(name).read_bytes())
                config["transformers_version"] = "4.57.6"
                Path(place, "config.json").write_text(json.dumps(config), encoding="utf-8")
                more = {"original_model_path": place}
            save(impl, directory, v4_compatible=True, **more)

    return save_so


def _resized() -> Any:
    model = hf.llama()
    model.resize_token_embeddings(72)
    return model


def _processor() -> Any:
    # One for images needs torchvision, which the suite does not install.
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000)
    return transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer())


def _templates(templates: Any) -> Callable[[], Any]:
    def make() -> Any:
        made = tokenizer()
        made.chat_template = templates
        return made

    return make


def _read(kind: str, backend: tokenizers.Tokenizer, **settings: Any) -> Any:
    """As a user has it: read by AutoTokenizer from a directory that names the class."""
    with tempfile.TemporaryDirectory() as place:
        backend.save(f"{place}/tokenizer.json")
        content = {"tokenizer_class": kind, "model_max_length": 64, **settings}
        Path(place, "tokenizer_config.json").write_text(json.dumps(content))
        # Without the model's kind, AutoTokenizer looks for it in a config.
        Path(place, "config.json").write_text(json.dumps({"model_type": "llama"}))
        return transformers.AutoTokenizer.from_pretrained(place)


def _byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: at for at, letter in enumerate(["<|endoftext|>", *alphabet, "th", "the"])}
    backend = tokenizers.Tokenizer(models.BPE(words, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    end = "<|endoftext|>"
    return _read("GPT2Tokenizer", backend, bos_token=end, eos_token=end, unk_token=end)


def _sentencepiece() -> Any:
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(piece, -float(at)) for at, piece in enumerate([*special, *"▁abcdet"])]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 2, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    backend.add_special_tokens(special)
    return _read("T5Tokenizer", backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0)


def _word_piece() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: at for at, word in enumerate([*special, "one", "two", "##s"])}
    backend = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(special)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _read("BertTokenizer", backend, **dict(zip(names, special, strict=True)))


def _more_special() -> Any:
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["w5", "w7"]})
    return made


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte_level": _byte_level,
    "more_special": _more_special,
    "one_template": _templates(CHAT_TEMPLATE),
    "sentencepiece": _sentencepiece,
    "two_templates": _templates({"default": CHAT_TEMPLATE, "tool_use": f"{CHAT_TEMPLATE}tools"}),
    "word_piece": _word_piece,
    "words": lambda: _read(
        "PreTrainedTokenizerFast",
        tokenizers.Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL)}, unk_token="<unk>")),
        unk_token="<unk>",
    ),
}
