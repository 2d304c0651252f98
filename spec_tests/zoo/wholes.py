# SPDX-License-Identifier: Apache-2.0
"""Whole models of any family, judged by transformers: saved by an implementation, and by ``save_pretrained``."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from spec_tests.harness.export import REFUSED, text_of
from spec_tests.implementations.base import Implementation
from spec_tests.zoo.build import build, inputs, output
from spec_tests.zoo.verdict import NotApplicableError, Verdict, close, distance

# What may differ from what save_pretrained writes, at any depth, and why.
DIFFERING = {
    "dtype": "the dtype of most saved elements, where the config says another (CFG-007)",
    "torch_dtype": "as dtype",
    "quantization_config": "none where the tensors are not quantised (CFG-003)",
    "tie_word_embeddings": "whether one tensor is saved (CFG-022)",
    "transformers_version": "what read it",
    "_attn_implementation_autoset": "what the machine can do",
    "_attn_implementation_internal": "likewise",
}

CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
}
"""How a model is built."""

REVERTS = int(transformers.__version__.partition(".")[0]) >= 5
"""Whether names are compared: transformers 4 has no function that reverts its conversions (IDX-015)."""

GIVEN = "given.pt"
"""The file that says what the live model was called with, and what it answered."""


@dataclass(frozen=True)
class Read:
    """What transformers made of a directory: what it answers, and what it complained of."""

    answer: Tensor | None
    said: frozenset[str] = frozenset()
    text: str = ""


def judge(impl: Implementation, family: str, case: str, directory: Path) -> Verdict:
    """Save a model of a family with an implementation, and compare with what ``save_pretrained`` does.

    Args:
        impl: the implementation, which has ``save_consolidated``.
        family: of transformers.
        case: one of `CASES`.
        directory: an empty one; the checkpoints stay there, as ``ours`` and ``theirs``.
    """
    if impl.save_consolidated is None:
        return Verdict(family, case, "not applicable", "no save_consolidated")
    ours, theirs = directory / "ours", directory / "theirs"
    try:
        model, given, live = _built(family, CASES[case], theirs)
    except NotApplicableError as reason:
        return Verdict(family, case, "not applicable", str(reason))
    torch.save({"class": type(model).__name__, "given": given, "live": live}, directory / GIVEN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            impl.save_consolidated(model, ours)
    except REFUSED as error:
        left = sorted(path.name for path in ours.rglob("*")) if ours.exists() else []
        if left:
            return Verdict(family, case, "wrong", f"refused, and left {left}: {text_of(error)}")
        return Verdict(family, case, "refused", text_of(error), peer_can=True)
    copies = frozenset() if _may_tie(_json(ours / "config.json")) else _shared_names(model)
    return _compared(family, case, (ours, theirs), type(model), given, live, copies)


def _may_tie(config: dict[str, Any]) -> bool:
    """Whether a saved config ties at some depth, or leaves that to the default of its class."""
    return config.get("tie_word_embeddings", True) or '"tie_word_embeddings": true' in json.dumps(config)


def _shared_names(model: Any) -> frozenset[str]:
    """Names of tensors that have several: where no config ties them, a copy under each is as good as one (IDX-004)."""
    named: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), []).append(name)
    return frozenset(name for names in named.values() if len(names) > 1 for name in names)


def _built(family: str, settings: dict[str, Any], theirs: Path) -> tuple[Any, dict[str, Tensor], Tensor]:
    """The model, what it is called with and what it answers; ``save_pretrained`` has saved it."""
    try:
        model = build(family, **settings)
        given = inputs(model)
        live = output(model, given)
    except Exception as error:
        raise NotApplicableError(f"no forward: {text_of(error)[:200]}") from error
    kept = {name: getattr(model.config.get_text_config(), name, value) for name, value in settings.items()}
    if "dtype" not in settings and kept != settings:
        raise NotApplicableError("the setting is not kept")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(str(theirs))
    except Exception as error:
        raise NotApplicableError(f"save_pretrained: {text_of(error)[:200]}") from error
    return model, given, live


def _compared(
    family: str,
    case: str,
    places: tuple[Path, Path],
    kind: type[Any],
    given: dict[str, Tensor],
    live: Tensor,
    copies: frozenset[str],
) -> Verdict:
    ours, theirs = places
    wrong = [*_differing_tensors(ours, theirs, copies), *_differing_configs(ours, theirs, kind)]
    mine, peer = read(ours, kind, given), read(theirs, kind, given)
    said = sorted(mine.said - peer.said)
    wrong += [f"transformers says {text}" for text in said]
    if mine.answer is None:
        if peer.answer is not None:
            wrong.append(f"cannot be loaded: {mine.text}")
    elif not close(far := distance(mine.answer, live)):
        # What a family rounds or makes up afresh on loading is no fault of who saved it: the files are the same.
        if peer.answer is None or close(distance(peer.answer, live)):
            wrong.append(f"{far:.1e} off")
        elif not wrong:
            return Verdict(family, case, "as the peer", f"{far:.1e} off, as save_pretrained's own")
    if wrong:
        return Verdict(family, case, "wrong", "; ".join(wrong))
    return Verdict(family, case, "equal")


def _tensors(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def _differing_tensors(ours: Path, theirs: Path, copies: frozenset[str]) -> list[str]:
    mine, peers = _tensors(ours), _tensors(theirs)
    wrong = []
    if REVERTS:
        lacking, more = sorted(peers.keys() - mine.keys()), sorted(mine.keys() - peers.keys() - copies)
        differing = (("lacking", lacking), ("too many", more))
        wrong = [f"{len(names)} keys {what}, first {names[0]}" for what, names in differing if names]
    for name in sorted(mine.keys() & peers.keys()):
        one, other = mine[name], peers[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            return [*wrong, f"{name} is {one.dtype} {tuple(one.shape)}, not {other.dtype} {tuple(other.shape)}"]
        if not torch.equal(
            one.view(torch.uint8) if one.ndim else one, other.view(torch.uint8) if other.ndim else other
        ):
            return [*wrong, f"{name} has other numbers"]
    return wrong


def _differing_configs(ours: Path, theirs: Path, kind: type[Any]) -> list[str]:
    names = ("config.json", "generation_config.json")
    wrong = [f"no {name}" for name in names if (theirs / name).exists() and not (ours / name).exists()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peers = kind.config_class.from_pretrained(str(theirs)).to_dict()
        except (OSError, ValueError):  # some look for a part of theirs on the hub, or refuse their own config
            return wrong
        mine = kind.config_class.from_pretrained(str(ours)).to_dict()
    wrong += [f"config: {text}" for text in _differences(mine, peers)]
    if (ours / "generation_config.json").exists() and (theirs / "generation_config.json").exists():
        one, other = (_json(place / "generation_config.json") for place in (ours, theirs))
        wrong += [f"generation config: {text}" for text in _differences({**other, **one}, {**one, **other})]
    return wrong


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _differences(mine: Any, peers: Any, where: str = "") -> list[str]:
    if isinstance(mine, dict) and isinstance(peers, dict):
        return [
            text
            for key in sorted(mine.keys() | peers.keys(), key=str)
            if key not in DIFFERING
            for text in _differences(mine.get(key), peers.get(key), f"{where}.{key}")
        ]
    return [] if mine == peers else [f"{where[1:]} is {mine!r}, not {peers!r}"[:160]]


def read(directory: Path, kind: type[Any], given: dict[str, Tensor]) -> Read:
    """Load a checkpoint with the installed transformers, and call the model."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, found = kind.from_pretrained(str(directory), output_loading_info=True)
            answer = output(model.eval(), given)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises, it could not read
        return Read(None, text=text_of(error)[:300])
    said = {str(one.message)[:160] for one in caught if issubclass(one.category, UserWarning)}
    said |= {f"{what} {min(map(str, names))}" for what, names in found.items() if names and "keys" in what}
    return Read(answer, frozenset(said))
