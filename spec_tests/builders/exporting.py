# SPDX-License-Identifier: Apache-2.0
"""Models that write the metadata of their whole checkpoint themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from spec_tests.builders import hf


class Exporter:
    """Notes every call, and writes ``files`` (relative path -> text) as a model's own metadata.

    Attributes:
        calls: (step, keywords), in order.
        files: what `save` writes.
        failing: the step that raises ``error``; "save" does so once it has written all but the last file.
        watched: a directory; what is in it at each call stands in ``seen``.
    """

    def __init__(self, files: dict[str, str], failing: str | None = None, watched: Path | None = None) -> None:
        self.files, self.failing, self.watched = files, failing, watched
        self.error = RuntimeError("this model cannot be exported")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seen: list[list[str]] = []

    def validate(self, **keywords: Any) -> None:
        """Refuse, when that is what it is for."""
        self._note("validate", keywords)
        if self.failing == "validate":
            raise self.error

    def save(self, *, hf_metadata_dir: str, **keywords: Any) -> None:
        """Write the files, one by one."""
        self._note("save", {"hf_metadata_dir": hf_metadata_dir, **keywords})
        for number, (name, text) in enumerate(self.files.items(), start=1):
            if self.failing == "save" and number == len(self.files):
                raise self.error
            path = Path(hf_metadata_dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def _note(self, step: str, keywords: dict[str, Any]) -> None:
        self.calls.append((step, keywords))
        here = self.watched
        self.seen.append(sorted(str(path) for path in here.rglob("*")) if here is not None and here.exists() else [])


def exporting_model(exporter: Exporter | None, asked: list[dict[str, Any]] | None = None) -> nn.Module:
    """A tiny Llama that returns ``exporter`` when it is asked for one, and notes the keywords in ``asked``."""
    model = hf.llama()

    def get(*, tokenizer: Any, original_model_path: Any) -> Exporter | None:
        if asked is not None:
            asked.append({"tokenizer": tokenizer, "original_model_path": original_model_path})
        return exporter

    model._get_consolidated_hf_metadata_exporter = get
    return model
