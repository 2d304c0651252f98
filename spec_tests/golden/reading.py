# SPDX-License-Identifier: Apache-2.0
"""What one version of transformers makes of the whole models that another has written.

`facts` is collected where the reading version is installed; `verdicts` compares it with what the writing version itself
reads, and is what the committed report shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from spec_tests.builders.families import outputs
from spec_tests.golden.cases import Whole, wholes
from spec_tests.harness.quiet import quiet

READS = "reads"
"""Directory of the goldens with ``<written>-<read>.json``."""
RIGHT, AS_BY_ITSELF = "right", "as by itself"
LIVE = "live"
"""Directory of a dumped tree with what each model answered when it was saved."""
ENOUGH = 1e-3  # far below what a lost tensor does, far above what another order of sums does


def write_answer(tree: Path, name: str) -> None:
    """Write what the model of a case answers, for `facts`."""
    case = wholes()[name.removesuffix(".v4")]
    if isinstance(case, Whole):
        (tree / LIVE).mkdir(exist_ok=True)
        answer = outputs(case.build(), case.inputs()).tolist()
        (tree / LIVE / f"{name}.json").write_text(json.dumps(answer), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write `facts`."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests read",
        description="Read a tree that `dump` has written, perhaps with other versions, and write what comes of it.",
    )
    parser.add_argument("tree", type=Path, metavar="DIR")
    parser.add_argument("file", type=Path, metavar="FILE", help="of JSON; fixtures/golden/reads has such files")
    options = parser.parse_args(arguments)
    if not (options.tree / LIVE).is_dir():
        parser.error(f"DIR must be a tree that `dump` has written, got {options.tree}")
    quiet()
    found = facts(options.tree)
    options.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(found)} models read with transformers {transformers.__version__}")
    return 0


def facts(tree: Path) -> dict[str, dict[str, Any]]:
    """Case -> what the installed versions read: numbers and classes, or the error."""
    return {
        path.name: _facts(path, wholes()[path.name.removesuffix(".v4")])
        for path in sorted((tree / "wholes").iterdir())
        if isinstance(wholes().get(path.name.removesuffix(".v4")), Whole)
    }


def verdicts(own: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Case -> ``right``, ``refused: ...`` or ``WRONG: ...``.

    Args:
        own: facts of the version that has written the tree.
        other: facts of the version that reads it.
    """
    return {case: _verdict(own[case], other[case]) for case in sorted(own.keys() & other.keys())}


def _verdict(own: dict[str, Any], other: dict[str, Any]) -> str:
    if error := other.get("error"):
        return AS_BY_ITSELF if "error" in own else f"refused: {error}"
    if "error" in own:
        return RIGHT
    found = [f"{name} {own[name]!r} -> {other[name]!r}" for name in own if name != "off" and own[name] != other[name]]
    # What the writing version reads may be off too: weights in bfloat16 are rounded.
    if is_off := other["off"] > max(ENOUGH, 2 * own["off"]):
        found.insert(0, f"outputs {other['off']:.1g} off")
    if is_off or own["token ids"] != other["token ids"]:
        return f"WRONG: {'; '.join(found)}"
    return f"{RIGHT}, with {'; '.join(found)}" if found else RIGHT


def _facts(directory: Path, case: Whole) -> dict[str, Any]:
    try:
        return _read(directory, case)
    except Exception as error:  # noqa: BLE001 - whatever a reader refuses with is what the table shows
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"}


def _read(directory: Path, case: Whole) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    model, said = kind.from_pretrained(directory, output_loading_info=True)
    inputs = case.inputs()
    live = torch.tensor(json.loads((directory.parents[1] / LIVE / f"{directory.name}.json").read_text()))
    read = outputs(model, inputs)
    found: dict[str, Any] = {
        "off": float((live - read).abs().max() / live.abs().max()) if live.shape == read.shape else float("inf"),
        "tensors drawn anew": len(said["missing_keys"]),
        "dtype": str(model.dtype),
        "rope theta": _rope_theta(model.config),
        "interval": repr(getattr(model.config, "an_interval", None)),
        "ends with": getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None,
        "tokenizer": None,
        "special tokens": [],
        "token ids": [],
    }
    if (directory / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        found["tokenizer"] = type(tokenizer).__name__.removesuffix("Fast")
        found["special tokens"] = sorted(map(str, tokenizer.all_special_tokens))
        found["token ids"] = list(tokenizer("the one two w5 w6 abc", add_special_tokens=True)["input_ids"])
    return found


def _rope_theta(config: Any) -> float | None:
    # Version 4 reads the one, and keeps the other of a version 5 without looking at it.
    there = getattr(config, "rope_parameters", None) or {}
    found: float | None = getattr(config, "rope_theta", None) or there.get("rope_theta")
    return found


def read_table(reads: Path) -> str:
    """The committed facts as a table in Markdown: written by, read by, and what is not simply right."""
    lines = [
        "# Who reads what",
        "",
        "Whole models written under one transformers and read under another.",
        "",
    ]
    for path in sorted(reads.glob("*.json")):
        written, _, read = path.stem.partition("-")
        if written == read:
            continue
        own = json.loads((reads / f"{written}-{written}.json").read_text(encoding="utf-8"))
        found = verdicts(own, json.loads(path.read_text(encoding="utf-8")))
        right = sum(verdict in (RIGHT, AS_BY_ITSELF) for verdict in found.values())
        lines += [f"## Written by {written}, read by {read}", "", f"{right} of {len(found)} are read as written.", ""]
        cases: dict[str, list[str]] = {}
        for case, verdict in found.items():
            if verdict not in (RIGHT, AS_BY_ITSELF):
                cases.setdefault(verdict, []).append(case)
        said = [f"- {verdict} ({', '.join(names)})" for verdict, names in sorted(cases.items())]
        lines += [*said, ""] if said else []
    return "\n".join(lines)
