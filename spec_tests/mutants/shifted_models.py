# SPDX-License-Identifier: Apache-2.0
"""Faults that shift a check and leave it in place: in whole models and their configs.

Each was put in by somebody who had read the implementation and the specification, and no test.
"""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_source import BLIND, edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["MRG-002"], source=BLIND)
def norm_is_taken_over_the_outputs(addons: Any) -> None:
    """The DoRA of a square Conv1D is merged wrongly."""
    edit(
        addons,
        "merging.py",
        "across = 0 if turned else 1",
        "across = 1",
    )


@mutant(kills=["MRG-002"], source=BLIND)
def product_is_rounded_before_it_is_added(addons: Any) -> None:
    """The update is rounded to bfloat16 twice."""
    edit(
        addons,
        "merging.py",
        "a, b = (factors[end].to(device=weight.device, dtype=dtype) for end in _ends(kind))",
        "a, b = (factors[end].to(device=weight.device) for end in _ends(kind))",
    )


@mutant(kills=["MRG-002"], source=BLIND)
def classes_made_of_conv1d_are_linear(addons: Any) -> None:
    """The update of a class derived from Conv1D is added untransposed."""
    edit(
        addons,
        "lora_sites.py",
        'turned = isinstance(part.modules.get(f"{module}.base_layer", owner), Conv1D)',
        'turned = type(part.modules.get(f"{module}.base_layer", owner)) is Conv1D',
    )


@mutant(kills=["MRG-002"], source="seen in this package: a square Conv1D below activation checkpointing was 3.6 off")
def wrapper_below_lora_hides_the_layer(addons: Any) -> None:
    """The update of a Conv1D that is wrapped below its LoRA is added untransposed."""
    edit(
        addons,
        "lora_sites.py",
        'turned = isinstance(part.modules.get(f"{module}.base_layer", owner), Conv1D)',
        'turned = isinstance(getattr(owner, "base_layer", owner), Conv1D)',
    )


@mutant(kills=["MRG-003"], source=BLIND)
def dimensions_are_gathered_from_the_first(addons: Any) -> None:
    """On a square mesh two of four pieces change places."""
    edit(
        addons,
        "whole.py",
        "self._rooms[1:], reversed(groups), strict=False)",
        "self._rooms[1:], groups, strict=False)",
    )


@mutant(kills=["LOAD-003"], source=BLIND)
def short_write_ends_the_file(addons: Any) -> None:
    """What the system did not write at once is zeros."""
    edit(
        addons,
        "weights.py",
        "while content:",
        "if content:",
    )


@mutant(kills=["CFG-022"], source=BLIND)
def tied_aliases_are_left_out_of_untied_models(addons: Any) -> None:
    """A weight that the config says to be read is in no file."""
    edit(
        addons,
        "model_state.py",
        'if {"embedding", "head"} <= embedding_tensors(part):',
        'if {"embedding", "head"} < embedding_tensors(part):',
    )


@mutant(kills=["IDX-013"], source=BLIND)
def sixteen_bits_are_never_cast(addons: Any) -> None:
    """A dtype was asked for, and bfloat16 weights keep theirs."""
    edit(
        addons,
        "holdings.py",
        "plain = tensor.is_floating_point() and tensor.dtype.itemsize >= 2",
        "plain = tensor.is_floating_point() and tensor.dtype.itemsize > 2",
    )


@mutant(kills=["IDX-013"], source=BLIND)
def doubles_are_never_cast(addons: Any) -> None:
    """A dtype was asked for, and float64 weights keep theirs."""
    edit(
        addons,
        "holdings.py",
        ("    plain = tensor.is_floating_point() and tensor.dtype.itemsize >= 2\n"),
        ("    plain = tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)\n"),
    )


@mutant(kills=["IDX-016"], source=BLIND)
def originals_of_one_file_alone_are_compared(addons: Any) -> None:
    """Of an original of several files the missing prefix is not seen, and version 4 draws these weights at random."""
    edit(
        addons,
        "hf_names.py",
        'Path(original).glob("*.safetensors")',
        'Path(original).glob("model.safetensors")',
    )


@mutant(kills=["IDX-015"], source=BLIND)
def sharded_models_forget_how_they_were_read(addons: Any) -> None:
    """The towers of a sharded CLIP lose the prefix that was published."""
    edit(
        addons,
        "hf_names.py",
        "vars(plain).update(vars(module), _modules=children)",
        "vars(plain).update(vars(module), _modules=children, _weight_conversions=None)",
    )


@mutant(kills=["IDX-010"], source=BLIND)
def missing_layers_are_at_the_end(addons: Any) -> None:
    """A model without its first layer is saved as a whole one."""
    edit(
        addons,
        "hf_config.py",
        "if not found.issuperset(range(count))}",
        "if max(found) + 1 < count}",
    )


@mutant(kills=["IDX-006"], source=BLIND)
def mapping_of_dtypes_of_an_earlier_save_stays(addons: Any) -> None:
    """Consolidation casts to what another save said."""
    edit(
        addons,
        "hf_addon.py",
        "replaces=(*OWNED, *INTERNAL, *replaced_tokenizer(place))",
        "replaces=(*OWNED, INDEX_MAPPING, *replaced_tokenizer(place))",
    )


@mutant(kills=["POST-005"], source=BLIND)
def asynchronous_save_leaves_earlier_shards(addons: Any) -> None:
    """Shards that the new index does not name stay beside it."""
    edit(
        addons,
        "save.py",
        "on_rank_zero(staged.group, staged.publish, CONFIG, MODEL_FILES)",
        "on_rank_zero(staged.group, staged.publish, CONFIG, hf_addon.OWNED)",
    )


@mutant(kills=["CFG-003"], source=BLIND)
def first_rank_tells_whether_weights_are_quantised(addons: Any) -> None:
    """The settings go, although a later stage has packed weights."""
    edit(
        addons,
        "hf_addon.py",
        "quantised, dtype, tied = any(view.quantised for _, view in views), saved_dtype",
        "quantised, dtype, tied = views[0][1].quantised, saved_dtype",
    )


@mutant(kills=["CFG-016"], source=BLIND)
def settings_of_a_sub_config_are_the_originals(addons: Any) -> None:
    """The weights of the text model are quantised, and its config does not say so."""
    edit(
        addons,
        "hf_config.py",
        "return {**content, **inner, **{key: live[key] for key in _QUANTISATION_KEYS if key in live}}",
        "return {**content, **{key: live[key] for key in _QUANTISATION_KEYS if key in live}}",
    )


@mutant(kills=["CFG-017"], source=BLIND)
def number_of_heads_in_the_singular_is_no_shape(addons: Any) -> None:
    """An original with another `n_head` is passed on."""
    edit(
        addons,
        "hf_config.py",
        "(layers?|heads?|experts|embd|inner)",
        "(layers?|heads|experts|embd|inner)",
    )


@mutant(kills=["CFG-017"], source=BLIND)
def sizes_of_experts_are_no_shapes(addons: Any) -> None:
    """An original with another `moe_intermediate_size` is passed on."""
    edit(
        addons,
        "hf_config.py",
        "\\w*(vocab|hidden|intermediate)_size",
        "(vocab|hidden|intermediate)_size",
    )


@mutant(kills=["CFG-017"], source=BLIND)
def number_of_layers_in_the_singular_is_no_shape(addons: Any) -> None:
    """An original with another `n_layer` is passed on."""
    edit(
        addons,
        "hf_config.py",
        "(layers?|heads?|experts|embd|inner)",
        "(layers|heads?|experts|embd|inner)",
    )


@mutant(kills=["CFG-022"], source=BLIND)
def first_rank_tells_whether_weights_are_tied(addons: Any) -> None:
    """Over a pipeline the config ties two tensors that differ."""
    edit(
        addons,
        "hf_addon.py",
        "saved = {one for _, view in views for one in view.embeddings}",
        "saved = set(views[0][1].embeddings)",
    )


@mutant(kills=["CFG-022"], source=BLIND)
def two_tensors_must_be_on_one_rank(addons: Any) -> None:
    """Over a pipeline the config ties an embedding and a head that differ."""
    edit(
        addons,
        "hf_addon.py",
        '    return True if "one" in saved else False if {"embedding", "head"} <= saved else None',
        (
            '    if "one" in saved:\n'
            "        return True\n"
            '    return False if any({"embedding", "head"} <= set(view.embeddings) for _, view in views) else None'
        ),
    )


@mutant(kills=["CFG-006"], source=BLIND)
def frozen_set_is_no_set(addons: Any) -> None:
    """A config that holds a frozenset cannot be saved."""
    edit(
        addons,
        "plain_json.py",
        "if isinstance(value, (set, frozenset)):",
        "if isinstance(value, set):",
    )


@mutant(kills=["CFG-004"], source=BLIND)
def copy_of_the_config_is_shallow(addons: Any) -> None:
    """A save takes the settings out of the live model's text config."""
    edit(
        addons,
        "hf_config.py",
        "config = copy.deepcopy(config)",
        "config = copy.copy(config)",
    )


@mutant(kills=["HOOK-012"], source=BLIND)
def exporter_of_any_keyword_knows_no_version(addons: Any) -> None:
    """An exporter that takes `**kwargs` is not told of the form."""
    edit(
        addons,
        "hooks.py",
        'if any(one.name == "v4_compatible" or one.kind is one.VAR_KEYWORD for one in taken):',
        'if any(one.name == "v4_compatible" for one in taken):',
    )


@mutant(kills=["HOOK-005"], source=BLIND)
def falsy_values_fit_everywhere(addons: Any) -> None:
    """An empty string or 0 is taken where a directory or a tokenizer belongs."""
    edit(
        addons,
        "hooks.py",
        "        if value is not None and not fits(value):",
        "        if value and not fits(value):",
    )
