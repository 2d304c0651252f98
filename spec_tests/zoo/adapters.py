# SPDX-License-Identifier: Apache-2.0
"""Adapters of any family, judged by PEFT: injected by it, saved by an implementation, and loaded by it again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spec_tests.builders.injected import config_for
from spec_tests.harness.export import REFUSED, save_adapter, text_of
from spec_tests.implementations.base import Implementation
from spec_tests.zoo.build import build, inputs, output
from spec_tests.zoo.registry import architectures
from spec_tests.zoo.tasks import unmade_task
from spec_tests.zoo.verdict import NotApplicableError, Verdict, close, distance

RANK, ALPHA, MORE_WORDS = 3, 7, 5


@dataclass(frozen=True)
class Mode:
    """One way in which users put LoRA on a model.

    Attributes:
        name: what the reports call it.
        settings: of `peft.LoraConfig`, for a model.
        task: the class of this task is taken, and no other; empty takes the family's main class.
        resized: whether the vocabulary is made larger first.
    """

    name: str
    settings: Callable[[nn.Module], dict[str, Any]]
    task: str = ""
    resized: bool = False


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _head(model: Any) -> str:
    """The first linear layer beside the backbone."""
    base = getattr(model, "base_model_prefix", "")
    inside = hasattr(model, base)
    found = [name for name, module in model.named_modules() if _is_linear(module) and not name.startswith(f"{base}.")]
    if not (inside and found):
        raise NotApplicableError("no linear head beside the backbone")
    return str(found[0])


def _inner(model: Any) -> str:
    """The last name of a linear layer of the backbone: the one that most layers have."""
    base, count = getattr(model, "base_model_prefix", ""), dict[str, int]()
    inside = hasattr(model, base)
    for name, module in model.named_modules():
        end = name.rpartition(".")[2]
        if _is_linear(module) and not end.isdigit() and (not inside or name.startswith(f"{base}.")):
            count[end] = count.get(end, 0) + 1
    if not count:
        raise NotApplicableError("no linear layer in the backbone")
    return max(sorted(count), key=lambda name: count[name])


def _kept(model: Any) -> dict[str, Any]:
    return {"target_modules": [_inner(model)], "modules_to_save": [_head(model).partition(".")[0]]}


def _patterns(model: Any) -> dict[str, Any]:
    inner = _inner(model)
    return {"target_modules": "all-linear", "rank_pattern": {inner: 2}, "alpha_pattern": {inner: 11}}


MODES = {
    mode.name: mode
    for mode in (
        Mode("default", lambda _model: {}),
        Mode("all-linear", lambda _model: {"target_modules": "all-linear"}),
        Mode("head as target", lambda model: {"target_modules": [_head(model), _inner(model)]}),
        Mode("head kept", _kept),
        Mode("resized", lambda model: {"target_modules": [_inner(model)]}, resized=True),
        Mode("dora", lambda _model: {"target_modules": "all-linear", "use_dora": True}),
        Mode("rslora", lambda _model: {"target_modules": "all-linear", "use_rslora": True}),
        Mode("patterns", _patterns),
        Mode(
            "classifier",
            lambda model: {"target_modules": [_inner(model)], "task_type": "SEQ_CLS"},
            task="SEQUENCE_CLASSIFICATION",
        ),
        Mode(
            "classifier as target",
            lambda model: {"target_modules": [_inner(model), _head(model)]},
            task="SEQUENCE_CLASSIFICATION",
        ),
    )
}


@dataclass
class _Trained:
    """A model with trained LoRA, and what it answers."""

    model: Any
    given: dict[str, Tensor]
    live: Tensor
    untrained: Tensor
    fresh: Callable[[], Any] = field(repr=False)


def judge(impl: Implementation, family: str, mode: Mode, directory: Path) -> Verdict:
    """Save LoRA of a family with an implementation, and compare what PEFT loads with the live model.

    Args:
        impl: the implementation.
        family: of transformers.
        mode: how PEFT injects it.
        directory: an empty one.
    """
    try:
        trained = _trained(family, mode, directory / "base")
    except NotApplicableError as reason:
        return Verdict(family, mode.name, "not applicable", str(reason))
    ours, theirs = directory / "ours", directory / "theirs"
    ours.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_adapter(impl, trained.model, ours, config_for(impl, trained.model.peft_config["default"]))
    except REFUSED as error:
        left = sorted(path.name for path in ours.rglob("*"))
        if left:
            return Verdict(family, mode.name, "wrong", f"refused, and left {left}: {text_of(error)}")
        peft = _loaded_from(trained, theirs, save=True)
        able = peft.far is not None and close(peft.far)
        return Verdict(family, mode.name, "refused", text_of(error), peer_can=able)
    mine = _loaded_from(trained, ours)
    if mine.far is not None and close(mine.far) and not mine.said:
        return Verdict(family, mode.name, "equal", f"{mine.far:.1e} off")
    if mine.far is None and (task := unmade_task(ours)):
        return Verdict(family, mode.name, "not applicable", f"this PEFT makes no {task} of this transformers")
    peft = _loaded_from(trained, theirs, save=True)
    said = "; ".join(sorted(mine.said - peft.said)) if peft.far is not None else ""
    if mine.far is None:
        outcome = "as the peer" if peft.far is None else "wrong"
    elif close(mine.far):
        outcome = "wrong" if said else "equal"
    else:
        outcome = "as the peer" if peft.far is not None and mine.far <= peft.far * 1.001 and not said else "wrong"
    return Verdict(
        family, mode.name, outcome, f"{_far(mine)}{said and f', and PEFT says {said}'}; PEFT's own: {_far(peft)}"
    )


def _far(loaded: _Loaded) -> str:
    return f"cannot be loaded ({loaded.text})" if loaded.far is None else f"{loaded.far:.1e} off"


@dataclass(frozen=True)
class _Loaded:
    """What PEFT made of a directory: how far off its answer is, None where there is none; and what it warned of."""

    far: float | None
    said: frozenset[str] = frozenset()
    text: str = ""


def _loaded_from(trained: _Trained, directory: Path, *, save: bool = False) -> _Loaded:
    import peft

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if save:
                trained.model.save_pretrained(str(directory))
                caught.clear()
            loaded = peft.PeftModel.from_pretrained(trained.fresh(), str(directory)).eval()
            far = distance(output(loaded, trained.given), trained.live)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises, it could not read
        return _Loaded(None, text=text_of(error)[:300])
    said = frozenset(_kind(str(one.message)) for one in caught if issubclass(one.category, UserWarning))
    return _Loaded(far, said)


def _kind(message: str) -> str:
    return message.split(":", maxsplit=1)[0][:120]


def _trained(family: str, mode: Mode, base: Path) -> _Trained:
    import peft

    def fresh() -> Any:
        model = _base(family, mode)
        if mode.resized:
            model.config.name_or_path = str(base)
            model.resize_token_embeddings(_words(model) + MORE_WORDS, mean_resizing=False)
        return model

    model = _base(family, mode)
    if mode.resized:
        _check_words(model)
        model.config.save_pretrained(str(base))
        model = fresh()
    settings = mode.settings(model)
    try:
        given = inputs(model)
        untrained = output(model, given)
    except Exception as error:
        raise NotApplicableError(f"no forward: {text_of(error)[:200]}") from error
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            wrapped = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **settings)).eval()
    except Exception as error:
        raise NotApplicableError(f"PEFT cannot inject: {text_of(error)[:200]}") from error
    if mode.resized:
        _draw_words(wrapped)
    _draw(wrapped)
    try:
        live = output(wrapped, given)
    except Exception as error:
        raise NotApplicableError(f"no forward with LoRA: {text_of(error)[:200]}") from error
    if distance(live, untrained) < 1e-4:
        raise NotApplicableError("the LoRA does not change the answer")
    return _Trained(wrapped, given, live, untrained, fresh)


def _base(family: str, mode: Mode) -> Any:
    offered = architectures(family)
    if mode.task and mode.task not in offered:
        raise NotApplicableError(f"no class for {mode.task}")
    try:
        return build(family, offered[mode.task] if mode.task else None)
    except Exception as error:
        raise NotApplicableError(f"cannot be built: {text_of(error)[:200]}") from error


def _words(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _check_words(model: Any) -> None:
    try:
        size, said = _words(model), model.config.get_text_config().vocab_size
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise NotApplicableError("no vocabulary") from error
    if size != said:
        raise NotApplicableError("the embedding has another size than the vocabulary")
    try:
        model.resize_token_embeddings(size + MORE_WORDS, mean_resizing=False)
    except Exception as error:
        raise NotApplicableError(f"cannot be resized: {text_of(error)[:120]}") from error
    model.resize_token_embeddings(size, mean_resizing=False)
    model.config.get_text_config().vocab_size = size


def _draw_words(model: Any) -> None:
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in {id(t): t for t in _tables(model)}.values():
            weight[-MORE_WORDS:] = torch.randn(weight[-MORE_WORDS:].shape, generator=source) * 0.3


def _tables(model: Any) -> Iterator[Tensor]:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if getattr(module, "weight", None) is not None:
            yield module.weight


def _draw(model: nn.Module) -> None:
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and "lora_A" not in name:
                noise = torch.randn(parameter.shape, generator=source)
                parameter.copy_(noise * 0.2 if "lora_B" in name else parameter + parameter.abs().mean() * 0.2 * noise)
