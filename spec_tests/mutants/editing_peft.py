# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes what is made of models that PEFT injected, merged or kept: named seams."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from spec_tests.mutants.editing import around, held, replace


def name_tasks_by_architecture_alone(package: Any) -> None:
    """A task type is written whether or not PEFT's class for it can call the model."""
    replace(package, held(package, "task_type"), held(package, "_task_of_architecture"))


def name_classes_as_python_does(package: Any) -> None:
    """A sharded model's class is called what FSDP2 calls it."""
    replace(package, held(package, "class_name"), lambda model: type(model).__name__)


def change_task_of(package: Any, task: Callable[..., Any]) -> None:
    """``task(right, peft_config, model)`` is the task type in the file."""

    def changed(original: Any, peft_config: Any, model: Any, plan: Any) -> Any:
        return task(lambda: original(peft_config, model, plan), peft_config, model)

    around(package, "task_of", changed)


def own_task(package: Any, model: Any) -> Any:
    """The task type that fits the model."""
    return held(package, "task_type")(model)


def never_find_resized_embeddings(package: Any) -> None:
    """Embeddings are taken for the base model's, whatever their size."""
    replace(package, held(package, "_resized_embeddings"), lambda _part: {})


def change_scale(package: Any, scale: Callable[[Any], Any]) -> None:
    """The scale of a module is ``scale(attribute)``."""
    replace(package, package.lora_sites._number, lambda value, _module: scale(value))


def take_every_name_for_a_module(package: Any) -> None:
    """Each name in the config's modules_to_save has to be one that is saved."""

    def broken(_original: Any, named: Any, _parts: Any, found: Any) -> None:
        if not set(named) <= set(found.names):
            raise ValueError(f"modules_to_save: {sorted(named)}")

    around(package, "check_kept", broken)


def know_more_settings(package: Any, *names: str) -> None:
    """These settings of a PEFT config count as without an effect."""
    package.adapter_config._KNOWN_SETTINGS |= set(names)


def without(package: Any, check: str) -> None:
    """A check by that name passes everything."""
    replace(package, held(package, check), lambda *_facts: None)


def escape_dots_alone(package: Any) -> None:
    """Of a name's signs in a pattern only dots are escaped."""
    package.targets._PLAIN = re.compile(".*", re.DOTALL)


def list_bare_parameters_as_modules(package: Any) -> None:
    """The module that holds a bare parameter is listed, and not the parameter."""
    around(package, "_bare", lambda original, *facts: original(*facts)._replace(fused=False, names=(facts[0].module,)))


def exclude_nothing(package: Any) -> None:
    """Modules whose names end like a target's are not kept apart."""
    held(package, "Adapter").excluded = property(lambda _plan: [])


def keep_inner_names(package: Any) -> None:
    """A whole model has the names and layouts that it has while it runs."""
    kind = held(package, "Publication")
    kind.of = lambda _part, tensors: kind(None, {name: name for name in tensors}, [])


def forget_the_originals_names(package: Any) -> None:
    """Names are not compared with those of the original's weights files."""
    replace(package, held(package, "check_original_names"), lambda _names, _original: None)


def read_what_is_shown(package: Any) -> None:
    """Parameters are read as FSDP2 shows them at the moment."""
    replace(package, held(package, "sharded_kind"), lambda: ())


def merge_unasked(package: Any) -> None:
    """LoRA is merged into a whole model whether or not the caller asks."""
    merged = held(package, "merged_parts")
    around(package, "PublishedModel", lambda original, parts, form: original(merged(parts), form))


def drop_unasked(package: Any) -> None:
    """A whole model with LoRA is saved without it."""
    merged, merge = held(package, "merged_parts"), package.merging._merged

    def broken(original: Any, parts: Any, form: Any) -> Any:
        package.merging._merged = lambda weight, *_facts: weight
        try:
            return original(merged(parts), form)
        finally:
            package.merging._merged = merge

    around(package, "PublishedModel", broken)


def change_sum(package: Any, broken: Callable[..., torch.Tensor]) -> None:
    """``broken(original, weight, scale, factors, kind, turned=)`` is a weight with its LoRA."""
    around(package, "_sum", broken)


def merge_in_place(package: Any) -> None:
    """The live weight becomes the merged one."""

    def broken(original: Any, weight: Any, *facts: Any) -> Any:
        result = original(weight, *facts)
        weight.data.copy_(result)
        return result

    around(package, "_merged", broken)


def own_by_pattern(package: Any, pattern: str) -> None:
    """Files of that pattern count as those of a whole model, too."""
    package.save.MODEL_FILES = (*package.save.MODEL_FILES, pattern)


def see_no_other_checkpoint(package: Any) -> None:
    """A destination may hold a checkpoint of the other kind."""
    around(package, "destination_of", lambda original, directory, _others, _asked: original(directory, (), True))


def own_of_tokenizers(package: Any, keep: Callable[[str], bool]) -> None:
    """Of the files of tokenizers and processors only those are replaced whose names ``keep``."""
    around(package, "replaced_tokenizer", lambda original, directory: tuple(filter(keep, original(directory))))


def save_processors_whole(package: Any) -> None:
    """The parts of a processor get no files of their own."""
    package.companions._PARTS = ()


def change_form_of_version_4(package: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What version 4 is to read of a tokenizer's settings is ``change(settings)``."""
    replace(package, held(package, "_as_version_4_reads"), change)


def name_live_classes(package: Any) -> None:
    """Files of tokenizers name the live classes, whoever can import them."""
    replace(package, held(package, "_public_classes"), lambda _tokenizer: {})


def change_reading(package: Any, read: Callable[[Any], Any]) -> None:
    """A JSON file is read by ``read(path)``."""
    replace(package, held(package, "read_json"), read)


def stage_under_the_whole_name(package: Any) -> None:
    """The directory beside a destination is called after all of its name."""
    replace(package, held(package, "_beside"), lambda there: there.with_name(f".{there.name}.staging-save"))
