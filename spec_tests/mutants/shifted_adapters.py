# SPDX-License-Identifier: Apache-2.0
"""Faults that shift a check and leave it in place: in the files of an adapter.

Each was put in by somebody who had read the implementation and the specification, and no test.
"""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_source import BLIND, edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["ADP-014"], source=BLIND)
def one_entry_for_a_rank_is_enough(addons: Any) -> None:
    """A module of the config's own rank takes the rank of a pattern that is meant for another: PEFT cannot load it."""
    edit(
        addons,
        "adapter_config.py",
        "pattern[end] != pattern.get(own)",
        "pattern[end] != pattern.get(own, pattern[end])",
    )


@mutant(kills=["ADP-015"], source=BLIND)
def allows_dora_beside_target_parameters(addons: Any) -> None:
    """PEFT's class for parameters knows no DoRA: the adapter cannot be loaded."""
    edit(
        addons,
        "adapter_config.py",
        "if {one.dora for one in plan.targets} != {use_dora} or (use_dora and plan.target_parameters):",
        "if {one.dora for one in plan.targets} != {use_dora}:",
    )


@mutant(kills=["ADP-014"], source=BLIND)
def patterns_name_modules_listed_as_parameters(addons: Any) -> None:
    """PEFT looks a parameter up with its `.weight`, finds no rank for it, and takes the config's."""
    edit(
        addons,
        "targets.py",
        'names = {f"{name}.weight" if name in self._misread else name for name in target.names}',
        "names = set(target.names)",
    )


@mutant(kills=["ADP-014"], source=BLIND)
def both_fused_projections_get_the_first_ones_rank(addons: Any) -> None:
    """Where gate_up has another rank than down, the config gives it the wrong one."""
    edit(
        addons,
        "target_sites.py",
        'rank = site.tensors[f"lora_{one}_A"].shape[2]',
        'rank = site.tensors[f"lora_{site.projections[0]}_A"].shape[2]',
    )


@mutant(kills=["ADP-026"], source=BLIND)
def embeddings_travel_only_when_they_have_grown(addons: Any) -> None:
    """After a resize to fewer tokens the adapter does not fit the base model."""
    edit(
        addons,
        "heads.py",
        "_words_of(original) in (None, size):",
        "size <= (_words_of(original) or size):",
    )


@mutant(kills=["META-007"], source=BLIND)
def stamp_of_an_earlier_save_stays(addons: Any) -> None:
    """An adapter without fused experts tells readers how its fused experts lie."""
    edit(
        addons,
        "peft_addon.py",
        "metadata.pop(PARAMWRAPPER_LAYOUT, None)",
        "pass",
    )


@mutant(kills=["META-008"], source=BLIND)
def experts_without_a_gate_contradict_their_stamp(addons: Any) -> None:
    """A right adapter of experts without a gate is reported as a wrong one."""
    edit(
        addons,
        "adapter_reading.py",
        "up_out in (down_in, 2 * down_in)",
        "up_out == 2 * down_in",
    )


@mutant(kills=["ADP-025"], source=BLIND)
def task_type_of_an_enum_is_its_name_in_python(addons: Any) -> None:
    """The config says `TaskType.CAUSAL_LM`, which PEFT does not know."""
    edit(
        addons,
        "adapter_config.py",
        'task = str(getattr(said, "value", said)) if said else task_type(model)',
        "task = str(said) if said else task_type(model)",
    )


@mutant(kills=["ADP-022"], source=BLIND)
def olora_leaves_the_base_weights_alone(addons: Any) -> None:
    """OLoRA subtracts from the base weights what it puts into LoRA: on the original model the adapter is wrong."""
    edit(
        addons,
        "adapter_config.py",
        '(True, False, None, "eva", "gaussian", "orthogonal")',
        '(True, False, None, "eva", "gaussian", "olora", "orthogonal")',
    )


@mutant(kills=["ADP-026"], source=BLIND)
def vocabulary_is_looked_for_at_the_top(addons: Any) -> None:
    """The resized embedding of a vision-language model stays behind."""
    edit(
        addons,
        "heads.py",
        (
            "    text, _ = attempt(config.get_text_config)  # which models of two texts refuse to tell\n"
            '    return getattr(text, "vocab_size", None)\n'
        ),
        ('    return getattr(config, "vocab_size", None)\n'),
    )


@mutant(kills=["ADP-025"], source=BLIND)
def question_answering_needs_no_positions(addons: Any) -> None:
    """PEFT's class for questions passes `start_positions`, which the model refuses."""
    edit(
        addons,
        "heads.py",
        ('    "QUESTION_ANS": ("start_positions", "end_positions"),\n    "SEQ_2_SEQ_LM": ('),
        '    "SEQ_2_SEQ_LM": (',
    )


@mutant(kills=["ADP-023"], source=BLIND)
def models_with_a_head_are_encoders_first(addons: Any) -> None:
    """A trainer's own `...LMHeadModel` is loaded as a bare encoder."""
    edit(
        addons,
        "heads.py",
        ('    ("LMHeadModel", "CAUSAL_LM"),\n    ("Model", "FEATURE_EXTRACTION"),\n'),
        ('    ("Model", "FEATURE_EXTRACTION"),\n    ("LMHeadModel", "CAUSAL_LM"),\n'),
    )


@mutant(kills=["ADP-017"], source=BLIND)
def alpha_pattern_says_nothing_of_the_scale(addons: Any) -> None:
    """Modules without a scale are written with alpha / r, although the pattern gave some another alpha."""
    edit(
        addons,
        "adapter_config.py",
        'for name in ("alpha_pattern", "rank_pattern", "use_rslora"))',
        'for name in ("rank_pattern", "use_rslora"))',
    )


@mutant(kills=["ADP-014"], source=BLIND)
def patterns_are_not_looked_up_by_the_last_segment(addons: Any) -> None:
    """The rank of a module at the top hits every deeper module of that name."""
    edit(
        addons,
        "adapter_config.py",
        "for start in range(1, len(segments))]",
        "for start in range(1, len(segments) - 1)]",
    )


@mutant(kills=["ADP-021"], source=BLIND)
def head_of_token_classifiers_is_the_classifier(addons: Any) -> None:
    """The untrained `score` of a token classifier is drawn at random on loading."""
    edit(
        addons,
        "heads.py",
        '    "TOKEN_CLS": ("classifier", "score"),',
        '    "TOKEN_CLS": ("classifier",),',
    )


@mutant(kills=["ADP-026"], source=BLIND)
def bias_of_a_resized_head_stays_behind(addons: Any) -> None:
    """The bias has the base model's number of rows, and the weight another."""
    edit(
        addons,
        "heads.py",
        "kept = {id(tensor) for module in modules if module is not None for tensor in module.parameters()}",
        "kept = {id(module.weight) for module in modules if module is not None}",
    )


@mutant(kills=["ADP-010"], source=BLIND)
def one_stage_speaks_for_all_in_the_config(addons: Any) -> None:
    """The config lists the modules of this rank's pipeline stage only."""
    edit(
        addons,
        "seed_helpers.py",
        'plan = _plan(model_state.model, v4_compatible, getattr(model_state, "pp_group", None))',
        "plan = _plan(model_state.model, v4_compatible, None)",
    )


@mutant(kills=["LOAD-005"], source="a trainer's LoRA on GPT-2, whose config has no fan_in_fan_out")
def turned_weights_are_no_matter_of_the_config(addons: Any) -> None:
    """PEFT warns of every Conv1D that gets LoRA."""
    edit(addons, "adapter_config.py", "all(one.turned for one in plan.targets) and", "False and")


@mutant(kills=["TGT-025"], source="the reference for some hours in November 2026")
def turned_weights_count_on_bare_parameters(addons: Any) -> None:
    """PEFT cannot load the adapter: it refuses `fan_in_fan_out` there."""
    edit(addons, "adapter_config.py", " and not plan.target_parameters,", ",")
