# SPDX-License-Identifier: Apache-2.0
"""Write a case into a directory: ``python -m spec_tests case NAME DIR``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from spec_tests.builders import hf
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.training import sample_input_ids
from spec_tests.exporters.cases import BY_ID, ExportCase, expected, values
from spec_tests.harness.selection import nearest

FORMAT = 1


def write_case(case: ExportCase, directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the files of a case; returns the logits that a reader must get, and those of the base, in float32."""
    directory.mkdir(parents=True)
    model = case.build()
    hf.save_base(model, directory / "base")
    tokenizer().save_pretrained(directory / "base")
    delta, inputs = values(case, model), {"input_ids": sample_input_ids()}
    said = {
        "format": FORMAT,
        "id": case.id,
        "kind": case.kind,
        "ranks": case.ranks,
        "auto_class": case.auto_class,
        "dtype": str(model.dtype).removeprefix("torch."),
        "lora": case.settings(model),
        "modules": case.modules(model),
    }
    text = json.dumps(said, indent=2, sort_keys=True) + "\n"
    (directory / "case.json").write_text(text, encoding="utf-8")
    save_file({name: one.contiguous() for name, one in delta.items()}, directory / "delta.safetensors")
    save_file(inputs, directory / "inputs.safetensors")
    with torch.no_grad():
        base = model.eval()(**inputs).logits.float()
        return expected(case, model, delta)(**inputs).logits.float(), base


def main(arguments: Sequence[str]) -> int:
    """Write one case to look at."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests case",
        description="Write one case for exporters into a new directory.",
        epilog="The cases: " + ", ".join(BY_ID),
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("directory", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.name not in BY_ID:
        parser.error(f"no case {options.name!r}; {nearest(options.name, BY_ID)}")
    if options.directory.exists():
        parser.error(f"{options.directory} must not exist yet")
    write_case(BY_ID[options.name], options.directory)
    print(f"{options.name}: written to {options.directory}")
    return 0
