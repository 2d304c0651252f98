# SPDX-License-Identifier: Apache-2.0
"""Judge what an exporter has written, by what PEFT and transformers make of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spec_tests.builders.training import sample_input_ids
from spec_tests.consumers import headers, peft, transformers
from spec_tests.exporters.cases import ExportCase
from spec_tests.harness.environment import ReaderError

CLOSE = {"F64": 1e-4, "F32": 1e-4, "F16": 5e-2, "BF16": 2e-1}
"""How far logits may be off, by the dtype of the file. The smallest fault in the catalogue's cases is 0.5."""
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Finding:
    """What is wrong, and which clauses say so."""

    clauses: tuple[str, ...]
    text: str


def spoken_of(case: ExportCase) -> tuple[str, ...]:
    """The clauses that a case is about."""
    own = ("LOAD-001", "LOAD-002", "ADP-020", "POST-013")
    whole = ("LOAD-003", "LOAD-011", "IDX-003", "IDX-011", "CFG-007")
    return tuple(sorted({*(own if case.kind == "adapter" else whole), *case.about}))


def judge(case: ExportCase, base: Path, export: Path, wanted: torch.Tensor) -> list[Finding]:
    """What is wrong with an export; nothing, if it is right.

    Raises:
        ReaderError: a reader could not run at all.
    """
    found = _adapter(case, base, export, wanted) if case.kind == "adapter" else _whole(case, base, export, wanted)
    return list(found)


def _adapter(case: ExportCase, base: Path, export: Path, wanted: torch.Tensor) -> Iterator[Finding]:
    reading = ("LOAD-001", "LOAD-002", *case.about)
    if lacking := [name for name in ADAPTER if not (export / name).is_file()]:
        yield Finding(reading, f"{lacking[0]} must be there, got {_listed(export)}")
        return
    # No reader of adapters was seen to ask for the header's format, so that nobody is accused of it (ADP-024).
    try:
        load_file(export / ADAPTER[1])
    except (SafetensorError, OSError) as error:
        yield Finding(reading, f"{ADAPTER[1]} cannot be read: {_said(error)}")
        return
    dtypes = _dtypes(export / ADAPTER[1])
    if not dtypes:
        yield Finding(reading, "the adapter has no tensors")
        return
    inputs = {"input_ids": sample_input_ids()}
    try:
        read = peft.reload(base, export, inputs, case.auto_class)
    except ReaderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a reader raises at a user
        yield Finding(reading, f"PEFT cannot load it: {_said(error)}")
        return
    yield from _disagreements(case, read)
    far = _far(read.logits, wanted, dtypes, ("LOAD-002", *case.about), "PEFT's logits", read.base_logits)
    yield from far
    if narrow := dtypes - {"F32", "F64"}:
        # Where the answer is wrong for another reason as well, the number says nothing about the rounding.
        off = "" if far else f": logits are {_off(read.logits, wanted):.2g} off"
        text = f"LoRA that is trained in float32 must be saved so, got {', '.join(sorted(narrow))}{off}"
        yield Finding(("ADP-020",), text)
    if (export / "config.json").is_file() and any(export.glob("model*.safetensors")):
        yield from _as_directory(case, export, wanted, dtypes)


def _disagreements(case: ExportCase, read: peft.Reload) -> Iterator[Finding]:
    """Where config, tensors and PEFT's modules are not the same ones."""
    modules = peft.expected_modules(case.modules(case.build()))
    if read.modules != modules:
        odd = sorted(set(read.modules) ^ set(modules))
        yield Finding(
            ("LOAD-001", *case.about),
            f"PEFT must find LoRA in {len(modules)} modules, got {len(read.modules)}; the first difference is {odd[0]}",
        )
    for what, keys in (("without a tensor", read.missing), ("that no module takes", read.ignored)):
        if keys:
            yield Finding(("LOAD-001",), f"{len(keys)} keys {what}, the first {keys[0]}")
    if read.complaints:
        yield Finding(("LOAD-001",), f"PEFT must be silent, got: {read.complaints[0][:300]}")


def _as_directory(case: ExportCase, export: Path, wanted: torch.Tensor, dtypes: set[str]) -> Iterator[Finding]:
    """Where the adapter lies beside a whole model, transformers reads both."""
    try:
        read = transformers.reload(export, case.auto_class, {"input_ids": sample_input_ids()})
    except ReaderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a reader raises at a user
        yield Finding(("POST-013",), f"transformers cannot load the directory: {_said(error)}")
        return
    yield from _far(read.outputs, wanted, dtypes, ("POST-013",), "from_pretrained of the same directory")


def _whole(case: ExportCase, base: Path, export: Path, wanted: torch.Tensor) -> Iterator[Finding]:
    reading = ("LOAD-003", *case.about)
    files = sorted(export.glob("model*.safetensors"))
    if not files or not (export / "config.json").is_file():
        yield Finding(reading, f"config.json and model*.safetensors must be there, got {_listed(export)}")
        return
    dtypes: set[str] = set()
    for path in files:
        try:
            load_file(path)
        except (SafetensorError, OSError) as error:
            yield Finding(reading, f"{path.name} cannot be read: {_said(error)}")
            return
        dtypes |= _dtypes(path)
        yield from _header(path)
    yield from _index(export, files)
    yield from _names(base, files)
    try:
        read = transformers.reload(export, case.auto_class, {"input_ids": sample_input_ids()})
    except ReaderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a reader raises at a user
        yield Finding(reading, f"transformers cannot load it: {_said(error)}")
        return
    for what in ("missing", "unexpected", "mismatched", "errors", "complaints"):
        if there := getattr(read, what):
            yield Finding(("LOAD-003",), f"{len(there)} {what}, the first: {str(there[0])[:300]}")
    if CODES.get(read.dtype) not in dtypes:
        yield Finding(("CFG-007",), f"the config says {read.dtype}, the files hold {', '.join(sorted(dtypes))}")
    yield from _far(read.outputs, wanted, dtypes, reading, "transformers' logits")


def _header(path: Path) -> Iterator[Finding]:
    said = headers.metadata_of(path)
    # transformers 4 takes a header without metadata for its own, and refuses one that does not name the framework.
    if said is not None and (said.get("format") != "pt" or not all(isinstance(value, str) for value in said.values())):
        yield Finding(("IDX-011",), f"the header of {path.name} must have the format 'pt', got {said}")


def _index(export: Path, files: list[Path]) -> Iterator[Finding]:
    there = {name: path.name for path in files for name in headers.tensors_in(path)}
    if not (export / headers.INDEX).is_file():
        # One file under its plain name needs none.
        if [path.name for path in files] != ["model.safetensors"]:
            yield Finding(("IDX-003",), f"{len(files)} weights files must have an index, got none")
        return
    listed = headers.index(export)["weight_map"]
    if listed != there:
        odd = sorted(name for name in listed.keys() | there.keys() if listed.get(name) != there.get(name))
        yield Finding(("IDX-003",), f"the index must name each tensor in its file, got {len(odd)} wrong: {odd[0]}")


def _names(base: Path, files: list[Path]) -> Iterator[Finding]:
    """The names are those of the base, which transformers has saved; the head of a tied model may be there as well."""
    there = {name for path in files for name in headers.tensors_in(path)}
    wanted = {name for path in base.glob("model*.safetensors") for name in headers.tensors_in(path)}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    odd = sorted((there ^ wanted) - ({"lm_head.weight"} if config.get("tie_word_embeddings") else set()))
    if odd:
        yield Finding(("LOAD-011",), f"the names must be the base's, got {len(odd)} others: {odd[0]}")


def _far(
    got: Any, wanted: torch.Tensor, dtypes: Iterable[str], clauses: tuple[str, ...], what: str, base: Any = None
) -> list[Finding]:
    numbers = torch.tensor(got)
    limit = max(CLOSE.get(dtype, 0.0) for dtype in dtypes)
    if numbers.shape != wanted.shape:
        return [Finding(clauses, f"{what} must have the shape {list(wanted.shape)}, got {list(numbers.shape)}")]
    off = _off(got, wanted)
    if off <= limit:
        return []
    nothing = base is not None and torch.equal(numbers, torch.tensor(base))
    does = "; it does nothing: they are the base model's" if nothing else ""
    return [Finding(clauses, f"{what} must be within {limit} of the trained model's, got {off:.3g} off{does}")]


def _off(got: Any, wanted: torch.Tensor) -> float:
    return (torch.tensor(got) - wanted).abs().max().item()


def _dtypes(path: Path) -> set[str]:
    return {entry["dtype"] for entry in headers.tensors_in(path).values()}


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _listed(directory: Path) -> str:
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return ", ".join(names[:8]) or "nothing"
