"""TOK: tokenizer files (spec/tokenizer.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from spec_tests.builders.tokenizers import RecordingTokenizer, tokenizer
from spec_tests.harness.export import save_metadata, snapshot
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
METADATA = {"adapter_config.json", "automodel_peft_config.json"}


class Processor:
    """A processor as vision-language models have one: files of several parts, some in a directory."""

    def save_pretrained(self, directory):
        for name in ("processor_config.json", "image/preprocessor_config.json"):
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{{"name": "{name}"}}')


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
    assert set(snapshot(save_metadata(impl, TREE.build(), fresh_dir(), tokenizer=None).directory)) == METADATA


def record_on_a_rank(rank, world, impl, directory):
    own = RecordingTokenizer()
    save_metadata(impl, TREE.build(), directory, tokenizer=own)
    return len(own.saved_to)


@pytest.mark.clause("TOK-003")
def test_saved_once_on_rank_zero(impl, fresh_dir):
    assert values(run_ranks(2, record_on_a_rank, impl, fresh_dir())) == [1, 0]


@pytest.mark.clause("TOK-004")
def test_processor_is_saved_with_its_directories(impl, fresh_dir):
    tree = snapshot(save_metadata(impl, TREE.build(), fresh_dir(), tokenizer=Processor()).directory)
    assert set(tree) == METADATA | {"processor_config.json", "image/preprocessor_config.json"}
