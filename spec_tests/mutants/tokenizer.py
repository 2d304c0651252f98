# SPDX-License-Identifier: Apache-2.0
"""Faults with tokenizer files (spec/tokenizer.md)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from spec_tests.mutants.editing_saving import (
    also_written,
    before_publishing,
    before_saving,
    change_accepted,
    change_tokenizers,
    save_tokenizers_in_new_form,
)
from spec_tests.mutants.registry import mutant

NAMES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}


class _Filtered:
    """Drops the files that an old list of names does not know."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def save_pretrained(self, directory: Any) -> None:
        self.inner.save_pretrained(directory)
        for path in Path(directory).iterdir():
            if path.is_file() and path.suffix != ".py" and path.name not in NAMES:
                path.unlink()


class _Below:
    """Saves into a directory of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def save_pretrained(self, directory: Any) -> None:
        self.inner.save_pretrained(str(Path(directory, "tokenizer")))


@mutant(kills=["TOK-001", "TOK-004"], source="transformers 4.43+: chat_template.jinja")
def keeps_only_files_of_an_old_list(addons: Any) -> None:
    """The chat template has had a file of its own for some time, and does not arrive."""
    change_tokenizers(addons, _Filtered)


@mutant(kills=["TOK-001", "TOK-004"], also=("RANK", "ERR"), source="the layout of diffusion pipelines")
def saves_the_tokenizer_in_a_directory_of_its_own(addons: Any) -> None:
    """Serving stacks look for the tokenizer beside the adapter and take the base model's."""
    change_tokenizers(addons, _Below)


@mutant(kills=["TOK-002", "HOOK-002"], also=("RANK", "ERR", "TOK", "HOOK"), source="a fallback to the base model's")
def writes_a_tokenizer_config_in_any_case(addons: Any) -> None:
    """A reader finds half a tokenizer beside the adapter and prefers it to the base model's whole one."""

    def stub(place: Path, save: Any, _plan: Any) -> None:
        if save.tokenizer is None:
            (place / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    also_written(addons, stub)


@mutant(kills=["TOK-003"], also=("ERR", "RANK"), source="NVIDIA-NeMo/Automodel#208")
def saves_the_tokenizer_on_every_rank(addons: Any) -> None:
    """Ranks on a shared disk write the same tokenizer files at the same time."""

    def save(kwargs: dict[str, Any]) -> None:
        if dist.is_initialized() and dist.get_rank() > 0 and kwargs.get("tokenizer") is not None:
            kwargs["tokenizer"].save_pretrained(str(kwargs["model_path"]))

    before_saving(addons, save)


@mutant(kills=["TOK-004"], also=("RANK", "ERR", "TOK"), source="NVIDIA-NeMo/Automodel#3270")
def takes_only_tokenizers_of_transformers(addons: Any) -> None:
    """A vision-language model cannot be saved with its processor."""
    expected = "a PreTrainedTokenizerBase"
    change_accepted(addons, "tokenizer", lambda value: hasattr(value, "vocab_size"), expected)


@mutant(kills=["TOK-005"], source="`tokenizer.save_pretrained`, and no more")
def leaves_tokenizer_settings_in_the_new_form(addons: Any) -> None:
    """Transformers 4 has no class `TokenizersBackend`."""
    save_tokenizers_in_new_form(addons)


@mutant(kills=["TOK-004", "CODE-001"], source="`os.listdir` and no deeper")
def publishes_no_subdirectories(addons: Any) -> None:
    """Helpers of custom code and parts of a processor, which lie deeper, do not arrive."""

    def flatten(place: Path) -> None:
        for path in place.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    before_publishing(addons, flatten)
