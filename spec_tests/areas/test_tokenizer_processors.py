# SPDX-License-Identifier: Apache-2.0
"""TOK for chat templates, processors and the classes that files name (spec/tokenizer.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from spec_tests.builders import hf
from spec_tests.builders.tokenizers import CHAT_TEMPLATE, tokenizer
from spec_tests.harness.export import save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
CHAT = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


def saved(impl, directory, tokens, **more):
    return save_metadata(impl, TREE.build(), directory, tokenizer=tokens, **more).directory


def with_templates(templates):
    made = tokenizer()
    made.chat_template = templates
    return made


OTHER = CHAT_TEMPLATE.replace("{{ message['role'] }}", "<{{ message['role'] }}>")
TEMPLATES = {
    "one": CHAT_TEMPLATE,
    "another": OTHER,
    "two": {"default": OTHER, "tool_use": CHAT_TEMPLATE + "tools"},
    "none": None,
}


@pytest.mark.clause("TOK-006")
@pytest.mark.parametrize("then", ["one", "another", "two"])
@pytest.mark.parametrize("first", TEMPLATES)
def test_chat_is_rendered_as_by_the_live_tokenizer(impl, fresh_dir, first, then):
    directory = fresh_dir()
    saved(impl, directory, with_templates(TEMPLATES[first]))
    live = with_templates(TEMPLATES[then])
    read = transformers.AutoTokenizer.from_pretrained(saved(impl, directory, live))
    assert read.chat_template == live.chat_template
    assert read.apply_chat_template(CHAT, tokenize=False) == live.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.clause("TOK-006")
@pytest.mark.needs("save_consolidated")
def test_chat_of_an_earlier_whole_save_is_not_read(impl, fresh_dir):
    directory = fresh_dir() / "model"
    for templates in (CHAT_TEMPLATE, None):
        impl.save_consolidated(hf.llama(), directory, tokenizer=with_templates(templates))
    assert transformers.AutoTokenizer.from_pretrained(directory).chat_template is None


@pytest.mark.clause("POST-005")
def test_tokenizer_that_is_there_stays_where_none_is_saved(impl, fresh_dir):
    directory = fresh_dir()
    with_templates(CHAT_TEMPLATE).save_pretrained(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    saved(impl, directory, None)
    assert {name: (directory / name).read_bytes() for name in before if (directory / name).exists()} == before


def processor(rate=8000, kind=transformers.Wav2Vec2Processor):
    return kind(feature_extractor=transformers.Wav2Vec2FeatureExtractor(sampling_rate=rate), tokenizer=tokenizer())


@pytest.mark.clause("TOK-007")
@pytest.mark.parametrize("v4_compatible", [False, True], ids=["usual", "v4_compatible"])
def test_processor_of_an_earlier_save_is_not_read(impl, fresh_dir, v4_compatible):
    directory = fresh_dir()
    saved(impl, directory, processor(16000), v4_compatible=True)
    saved(impl, directory, processor(8000), v4_compatible=v4_compatible)
    assert transformers.AutoFeatureExtractor.from_pretrained(directory).sampling_rate == 8000
    assert transformers.AutoProcessor.from_pretrained(directory).feature_extractor.sampling_rate == 8000
    # Version 4 reads this one where it is.
    of_version_4 = directory / "preprocessor_config.json"
    assert not of_version_4.exists() or json.loads(of_version_4.read_text())["sampling_rate"] == 8000


@pytest.mark.clause("TOK-007")
def test_version_4_finds_the_parts_of_a_processor(impl, fresh_dir):
    directory = saved(impl, fresh_dir(), processor(), v4_compatible=True)
    content = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert (content["feature_extractor_type"], content["sampling_rate"]) == ("Wav2Vec2FeatureExtractor", 8000)


@pytest.mark.clause("TOK-007")
def test_processor_stays_where_a_tokenizer_is_saved(impl, fresh_dir):
    # Somebody may have put it there for the model.
    directory = fresh_dir()
    (directory / "preprocessor_config.json").write_text("{}")
    saved(impl, directory, tokenizer())
    assert (directory / "preprocessor_config.json").read_text() == "{}"


class BothNames:
    """Writes both names of special tokens, as a tokenizer with code of its own may."""

    def save_pretrained(self, directory):
        tokenizer().save_pretrained(directory)
        path = Path(directory) / "tokenizer_config.json"
        both = {"additional_special_tokens": ["w5", "w6"], "extra_special_tokens": ["w6", "w7"]}
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **both}), encoding="utf-8")


@pytest.mark.clause("TOK-008")
@pytest.mark.parametrize("v4_compatible", [False, True], ids=["usual", "v4_compatible"])
def test_special_tokens_stand_under_one_name(impl, fresh_dir, v4_compatible):
    directory = saved(impl, fresh_dir(), BothNames(), v4_compatible=v4_compatible)
    content = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {name for name in ("additional_special_tokens", "extra_special_tokens") if name in content}
    assert [content[name] for name in names] == [["w5", "w6", "w7"]]
    assert names == {"additional_special_tokens"} or not v4_compatible
    assert {"w5", "w7"} <= set(transformers.AutoTokenizer.from_pretrained(directory).all_special_tokens)


class _PatchedProcessor(transformers.Wav2Vec2Processor):
    """As a trainer's wrapper derives one."""


class _PatchedTokenizer(transformers.PreTrainedTokenizerFast):
    """Likewise."""


class _PatchedExtractor(transformers.Wav2Vec2FeatureExtractor):
    """Likewise; version 5 names it inside the processor's file."""


def _of_a_script(kind):
    """As a script makes one and registers it: transformers saves no code of a script."""
    made = type(kind.__name__, (kind,), {"__module__": "__main__"})
    made.register_for_auto_class()
    return made


@pytest.mark.clause("TOK-009")
@pytest.mark.parametrize("made", [lambda kind: kind, _of_a_script], ids=["of_a_module", "of_a_script"])
def test_classes_that_nobody_can_import_are_not_named(impl, fresh_dir, made):
    live = processor(kind=_PatchedProcessor)
    live.tokenizer.__class__ = made(_PatchedTokenizer)
    live.feature_extractor.__class__ = made(_PatchedExtractor)
    directory = saved(impl, fresh_dir(), live)
    texts = {path.name: path.read_text(encoding="utf-8") for path in directory.glob("*.json")}
    assert [name for name, text in texts.items() if "_Patched" in text] == []
    assert isinstance(transformers.AutoProcessor.from_pretrained(directory), transformers.Wav2Vec2Processor)


@pytest.mark.clause("TOK-004")
def test_setting_that_reads_like_a_class_stays(impl, fresh_dir):
    live = tokenizer()
    live.__class__ = _PatchedTokenizer
    live.init_kwargs["note"] = "_PatchedTokenizer"
    directory = saved(impl, fresh_dir(), live)
    content = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert content["note"] == "_PatchedTokenizer"


class _Part:
    def __init__(self, file):
        self.file = file
        self.parts = []

    def save_pretrained(self, directory):
        (Path(directory) / self.file).write_text("{}", encoding="utf-8")
        # A processor of version 4 saves its parts itself.
        for part in self.parts if transformers.__version__.startswith("4.") else ():
            part.save_pretrained(directory)


@pytest.mark.clause("TOK-007")
@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("feature_extractor", "preprocessor_config.json"),
        ("image_processor", "preprocessor_config.json"),
        ("video_processor", "video_preprocessor_config.json"),
    ],
)
def test_version_4_finds_each_part_under_its_own_name(impl, fresh_dir, part, file):
    whole = _Part("processor_config.json")
    whole.tokenizer = tokenizer()
    whole.parts = [_Part(file)]
    setattr(whole, part, whole.parts[0])
    directory = saved(impl, fresh_dir(), whole, v4_compatible=True)
    assert (directory / file).is_file()
