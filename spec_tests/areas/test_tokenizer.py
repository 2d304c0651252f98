"""TOK: tokenizer files (spec/tokenizer.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from spec_tests.builders import hf
from spec_tests.builders.tokenizers import RecordingTokenizer, tokenizer
from spec_tests.harness.export import hook_files, save_metadata, snapshot, stage_metadata
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))


class Processor:
    """A processor as vision-language models have one: files of several parts, some in a directory."""

    def written(self):
        return {
            "processor_config.json": {"processor_class": type(self).__name__, "steps": ["resize"]},
            "image/preprocessor_config.json": {"name": "image"},
            "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"]},
        }

    def save_pretrained(self, directory):
        for name, content in self.written().items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))


@pytest.mark.clause("TOK-001")
def test_saved_tokenizer_encodes_alike(impl, fresh_dir):
    own = tokenizer()
    directory = save_metadata(impl, TREE.build(), fresh_dir(), tokenizer=own).directory
    read = transformers.AutoTokenizer.from_pretrained(directory)
    text = "w1 w40 nothing w2"
    assert read(text)["input_ids"] == own(text)["input_ids"]
    assert read.chat_template == own.chat_template


@pytest.mark.clause("TOK-002")
def test_no_tokenizer_no_files(impl, fresh_dir):
    assert set(snapshot(save_metadata(impl, TREE.build(), fresh_dir(), tokenizer=None).directory)) == set(
        hook_files(impl)
    )


def record_on_a_rank(rank, world, impl, directory):
    own = RecordingTokenizer()
    save_metadata(impl, TREE.build(), directory, tokenizer=own)
    return len(own.saved_to)


@pytest.mark.clause("TOK-003")
def test_saved_once_on_rank_zero(impl, fresh_dir):
    assert values(run_ranks(2, record_on_a_rank, impl, fresh_dir())) == [1, 0]


@pytest.mark.clause("TOK-004")
# Without sentencepiece, transformers has a SiglipTokenizer that refuses to be asked anything.
@pytest.mark.parametrize("name", ["OwnProcessor", "SiglipTokenizer"])
def test_processor_is_saved_with_its_directories(impl, fresh_dir, name):
    live = type(name, (Processor,), {})()
    directory = save_metadata(impl, TREE.build(), fresh_dir(), tokenizer=live).directory
    assert set(snapshot(directory)) == {*hook_files(impl), *live.written()}
    assert {file: json.loads((directory / file).read_text(encoding="utf-8")) for file in live.written()} == (
        live.written()
    )


def save_adapter_with(impl, directory, _original, own):
    return save_metadata(impl, TREE.build(), directory, tokenizer=own, v4_compatible=True).directory


def save_model_with(impl, directory, original, own):
    model = hf.llama()
    (original / "config.json").write_text(model.config.to_json_string())
    return stage_metadata(impl, model, directory, tokenizer=own, v4_compatible=True, original_model_path=str(original))


def bert_tokenizer(directory):
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nw1\nw2")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return directory


@pytest.mark.clause("TOK-005")
@pytest.mark.parametrize("special", [[], ["<x>", "<y>"]], ids=["plain", "with_special_tokens"])
@pytest.mark.parametrize(
    "save",
    [
        pytest.param(save_adapter_with, id="adapter"),
        pytest.param(save_model_with, marks=pytest.mark.needs("consolidated"), id="consolidated"),
    ],
)
def test_settings_are_spelled_as_version_4_reads_them(impl, fresh_dir, save, special):
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": special})
    directory = save(impl, fresh_dir(), fresh_dir(), own)
    content = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert content["tokenizer_class"] in {"PreTrainedTokenizerFast", "PreTrainedTokenizer"}
    assert not isinstance(content.get("extra_special_tokens"), list)
    read = transformers.AutoTokenizer.from_pretrained(directory)
    text = "w1 w40 nothing<x>w2 <y>"
    assert read(text)["input_ids"] == own(text)["input_ids"]
    assert read.all_special_tokens == own.all_special_tokens
    assert read.chat_template == own.chat_template


@pytest.mark.clause("TOK-005")
def test_class_with_a_name_of_its_own_keeps_it(impl, fresh_dir):
    own = transformers.AutoTokenizer.from_pretrained(bert_tokenizer(fresh_dir()))
    directory = save_adapter_with(impl, fresh_dir(), fresh_dir(), own)
    content = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert content["tokenizer_class"] in {"BertTokenizer", "BertTokenizerFast"}
    read = transformers.AutoTokenizer.from_pretrained(directory)
    assert read("w1 w2")["input_ids"] == own("w1 w2")["input_ids"]
