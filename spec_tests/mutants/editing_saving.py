# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes the act of saving: keywords, what ranks say to each other, and what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing import around, held, replace


def before_saving(package: Any, step: Callable[[dict[str, Any]], None]) -> None:
    """``step(kwargs)`` runs on every rank before `PeftAddon.pre_save` does its work."""
    original = package.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        step(kwargs)
        original(self, **kwargs)

    package.PeftAddon.pre_save = pre_save


def after_saving(package: Any, step: Callable[[dict[str, Any]], None]) -> None:
    """``step(kwargs)`` runs on every rank after `PeftAddon.pre_save` has done its work."""
    original = package.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        original(self, **kwargs)
        step(kwargs)

    package.PeftAddon.pre_save = pre_save


def also_written(package: Any, write: Callable[..., None]) -> None:
    """``write(directory, save, plan)`` follows, on rank 0, once the files of an adapter but the weights are made.

    ``directory`` is the one that is about to be published; ``save`` has the keywords of `PeftAddon.pre_save`.
    """

    def broken(original: Any, save: Any, plan: Any, directory: Path) -> None:
        original(save, plan, directory)
        write(directory, save, plan)

    around(package, package.peft_addon.write_files, broken)


def forget(package: Any, keyword: str) -> None:
    """`save_adapter` works as if ``keyword`` had not been given."""

    def broken(original: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(keyword, None)
        original(*args, **kwargs)

    around(package, package.save_adapter, broken)


def change_keywords(package: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What a save of an adapter was told becomes ``change(kwargs)``."""
    around(package, "adapter_save", lambda original, kwargs: original(change(dict(kwargs))))


def change_accepted(package: Any, keyword: str, fits: Callable[[Any], bool], expected: str) -> None:
    """Values of a keyword are accepted where ``fits(value)``; ``expected`` says which they are."""
    held(package, "_KNOWN")[keyword] = (fits, expected)


def change_tokenizers(package: Any, kind: Callable[[Any], Any]) -> None:
    """Every tokenizer is saved as ``kind(tokenizer)`` would be."""

    def broken(original: Any, kwargs: Any, *names: Any) -> dict[str, Any]:
        found: dict[str, Any] = original(kwargs, *names)
        if found.get("tokenizer") is not None:
            found["tokenizer"] = kind(found["tokenizer"])
        return found

    around(package, "checked", broken)


def save_tokenizers_in_new_form(package: Any) -> None:
    """Settings of tokenizers are left as the installed transformers writes them."""
    around(
        package, "save_tokenizer", lambda original, tokenizer, place, _v4_compatible: original(tokenizer, place, False)
    )


def before_publishing(package: Any, step: Callable[[Path], None]) -> None:
    """``step(directory)`` runs whenever the files of a directory are about to be moved to where readers look."""

    def broken(original: Any, source: Path, destination: Path, **more: Any) -> None:
        step(source)
        original(source, destination, **more)

    around(package, "publish", broken)


def look_inside(package: Any, wrapped: Callable[[Any], bool]) -> None:
    """Wrappers are looked into only where ``wrapped(module)``."""
    around(package, "unwrapped", lambda original, module: original(module) if wrapped(module) else module)


def unwrapped(package: Any, model: Any) -> Any:
    """The model inside its wrappers."""
    return held(package, "unwrapped")(model)


def is_rank_zero(package: Any, group: Any) -> bool:
    """Whether this process writes."""
    return bool(held(package, "is_rank_zero")(group))


def several(package: Any, group: Any) -> bool:
    """Whether there are other ranks."""
    return bool(held(package, "group_size")(group) > 1)


def change_writing_rank(package: Any, writes: Callable[[Any], bool]) -> None:
    """The rank writes for which ``writes(group)``."""
    replace(package, held(package, "is_rank_zero"), writes)


def attempted(package: Any, step: Any) -> Any:
    """The value of ``step()`` and None, or None and its error."""
    return held(package, "attempt")(step)


def change_attempt(package: Any, broken: Callable[[Callable[[], Any]], Any]) -> None:
    """``broken(step)`` gives the value of a step and None, or None and its error."""

    def changed(_original: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        return broken(functools.partial(step, *args, **kwargs))

    around(package, "attempt", changed)


def change_rank_zeros_step(package: Any, broken: Callable[..., Any]) -> None:
    """``broken(original, group, step)`` takes the place of a step that rank 0 does while the others wait."""
    around(package, "on_rank_zero", _bound(broken))


def change_rank_zeros_step_in_whole_saves(package: Any, broken: Callable[..., Any]) -> None:
    """As `change_rank_zeros_step`, but in `save_adapter` and `save_consolidated` only."""
    package.save.on_rank_zero = functools.partial(_bound(broken), package.save.on_rank_zero)


def change_agreement(package: Any, broken: Callable[..., Any]) -> None:
    """``broken(original, group, step)`` takes the place of finding out what all ranks say; ``step()`` is this one's."""
    around(package, "agree", _bound(broken))


def change_agreement_in_whole_saves(package: Any, broken: Callable[..., Any]) -> None:
    """As `change_agreement`, but in `save_adapter` and `save_consolidated` only."""
    package.save.agree = functools.partial(_bound(broken), package.save.agree)


def _bound(broken: Callable[..., Any]) -> Callable[..., Any]:
    def bound(original: Any, group: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        return broken(original, group, functools.partial(step, *args, **kwargs))

    return bound


def change_description(package: Any, describe: Callable[[Any], str]) -> None:
    """What other ranks hear of an error is ``describe(error)``."""
    around(package, "_described", lambda _original, failure: "" if failure is None else describe(failure))


def say_what_the_backend_says(package: Any) -> None:
    """Errors of torch.distributed are passed on as they are."""
    replace(package, held(package, "_together"), lambda _group, _step: contextlib.nullcontext())


def think_there_is_a_group(package: Any, initialised: Callable[[], bool]) -> None:
    """Whether ranks can talk to each other is what ``initialised()`` says."""
    replace(package, held(package, "_initialised"), initialised)


def change_group(package: Any, group: Callable[[Any], Any]) -> None:
    """The ranks that save together are ``group(kwargs)``."""
    replace(package, held(package, "process_group"), group)


def check_against_all_ranks(package: Any) -> None:
    """Whether a group has all ranks of the model is looked up in the default group."""
    around(
        package, "adapter_view", lambda original, save, content, _group, **more: original(save, content, None, **more)
    )
    package.peft_addon.holdings = functools.partial(_without_group, package.peft_addon.holdings)


def _without_group(original: Any, tensors: Any, _group: Any) -> Any:
    return original(tensors, None)


def gather_shards_as_wholes(package: Any) -> None:
    """Of a sharded tensor this rank's shard is taken for the whole."""

    def local(original: Any, tensor: Any, *more: Any) -> Any:
        return original(tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor, *more)

    around(package, "_full", local)
    around(package, package.gathering.holdings, _local_holdings)


def _local_holdings(original: Any, tensors: Any, *more: Any) -> Any:
    local = {name: one.detach().to_local() if hasattr(one, "to_local") else one for name, one in tensors.items()}
    return original(local, *more)


def check_view(package: Any, check: Callable[[Any], None]) -> None:
    """``check(plan)`` runs on every rank once it knows its own part of the adapter."""

    def broken(original: Any, *args: Any, **settings: Any) -> Any:
        view = original(*args, **settings)
        check(view.plan)
        return view

    around(package, "adapter_view", broken)


def change_settings(package: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What ranks compare about the save of an adapter becomes ``change(settings)``: name -> value."""

    def broken(original: Any, *args: Any, **settings: Any) -> Any:
        view = original(*args, **settings)
        return dataclasses.replace(view, settings=tuple(change(dict(view.settings)).items()))

    around(package, "adapter_view", broken)


def change_settings_as_told(package: Any, change: Callable[..., None]) -> None:
    """In `save_adapter`, ``change(settings, told)`` edits what ranks compare.

    ``told`` are the arguments, as this rank's caller gave them.
    """
    told: dict[str, Any] = {}
    signature = inspect.signature(package.save_adapter)

    def remembering(original: Any, *args: Any, **kwargs: Any) -> None:
        told.update(signature.bind(*args, **kwargs).arguments)
        original(*args, **kwargs)

    def changed(settings: dict[str, Any]) -> dict[str, Any]:
        if told:
            change(settings, told)
        return settings

    around(package, package.save_adapter, remembering)
    change_settings(package, changed)


def change_views(package: Any, change: Callable[[list[Any]], list[Any]]) -> None:
    """Of what the ranks say of their adapters, [(ranks, view)] with rank 0's first, ``change(views)`` is heard.

    A view has the ``plan`` of the rank's own part, and whether there is a ``pipeline``.
    """
    around(package, "agreed_adapter", lambda original, views: original(change(list(views))))


def take_plan_of_rank_zero(package: Any) -> None:
    """Whatever other ranks hold, the files are made of what rank 0 holds."""
    around(package, "agreed_adapter", lambda _original, views: views[0][1].plan)


def change_union(package: Any, change: Callable[[list[Any]], list[Any]]) -> None:
    """The plans of the ranks of a pipeline are united as if they were ``change(plans)``."""
    around(package, "united", lambda original, plans: original(change(list(plans))))
