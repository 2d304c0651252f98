# SPDX-License-Identifier: Apache-2.0
"""Faults that shift a check and leave it in place: in the names of adapters, and among ranks.

Each was put in by somebody who had read the implementation and the specification, and no test.
"""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_source import BLIND, edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["TGT-026"], source=BLIND)
def features_do_not_count_as_checked(addons: Any) -> None:
    """A shard whose LoRA has the shapes of an earlier whole module is saved as a whole one."""
    edit(
        addons,
        "lora_sites.py",
        "site.kind = (site.features, *kind)",
        "site.kind = tuple(kind)",
    )


@mutant(kills=["TGT-020"], source=BLIND)
def layers_of_fused_experts_are_counted(addons: Any) -> None:
    """Two projections trained in two different layers are listed by their short names, and PEFT wraps both in both."""
    edit(
        addons,
        "targets.py",
        'owners = {frozenset(one.rpartition(".")[0] for one in full) for full in used.values()}',
        "owners = {len(full) for full in used.values()}",
    )


@mutant(kills=["TGT-025"], source=BLIND)
def legacy_layout_takes_parameters_of_peft(addons: Any) -> None:
    """The caller asks for the legacy layout, and gets another without a word."""
    edit(
        addons,
        "target_sites.py",
        "if more or (of_experts and form is not Form.FUSED):",
        "if more or (of_experts and form is Form.PER_EXPERT):",
    )


@mutant(kills=["EXP-005"], source=BLIND)
def gate_up_is_nested_everywhere_or_nowhere(addons: Any) -> None:
    """Where gate_up alone was trained, its keys get a `base_layer` that PEFT does not have."""
    edit(
        addons,
        "experts.py",
        'nested=match["experts"] in both',
        "nested=bool(both)",
    )


@mutant(kills=["TGT-018"], source=BLIND)
def first_model_anywhere_goes(addons: Any) -> None:
    """`text_model.layers` becomes `text_layers`: the encoder's weights are damaged."""
    edit(
        addons,
        "model_state.py",
        'name[len(prefix) :].removeprefix("model.")',
        'name[len(prefix) :].replace("model.", "", 1)',
    )


@mutant(kills=["TGT-011"], source=BLIND)
def first_part_alone_has_the_adapter_of_names(addons: Any) -> None:
    """Where the second part of a model has the `state_dict_adapter`, the names stay the trainer's."""
    edit(
        addons,
        "model_state.py",
        "adapter = next((adapter for adapter in found if adapter is not None), None)",
        "adapter = next(found, None)",
    )


@mutant(kills=["TGT-021"], source=BLIND)
def head_in_fsdp2s_own_class_is_unknown(addons: Any) -> None:
    """The head's keys keep PEFT's inner names, and it is drawn at random on loading."""
    edit(
        addons,
        "modules.py",
        'both and any(base.__name__ == "ModulesToSaveWrapper" for base in type(module).__mro__)',
        'both and type(module).__name__ == "ModulesToSaveWrapper"',
    )


@mutant(kills=["TGT-007"], source=BLIND)
def legacy_layout_wins_over_version_4(addons: Any) -> None:
    """Experts are fused, although a reader of version 4 is to load them."""
    edit(
        addons,
        "experts.py",
        (
            "        if v4_compatible:\n"
            "            return cls.PER_EXPERT\n"
            "        return cls.FUSED_LEGACY if legacy_paramwrapper_layout else cls.FUSED\n"
        ),
        (
            "        if legacy_paramwrapper_layout:\n"
            "            return cls.FUSED_LEGACY\n"
            "        return cls.PER_EXPERT if v4_compatible else cls.FUSED\n"
        ),
    )


@mutant(kills=["EXP-005"], source=BLIND)
def layers_may_train_what_they_like(addons: Any) -> None:
    """Both fused parameters get short names, and PEFT looks for LoRA that was never trained."""
    edit(
        addons,
        "targets.py",
        (
            '        owners = {frozenset(one.rpartition(".")[0] for one in full) for full in used.values()}\n'
            "        everywhere = len(owners) <= 1 and not self.plain_experts\n"
        ),
        ("        everywhere = not self.plain_experts\n"),
    )


@mutant(kills=["TGT-019"], source=BLIND)
def first_stage_tells_whether_there_are_experts(addons: Any) -> None:
    """Dense projections named like experts' are listed as modules, and PEFT wraps the experts too."""
    edit(
        addons,
        "targets.py",
        "has_experts=any(one.has_experts for one in every)",
        "has_experts=every[0].has_experts",
    )


@mutant(kills=["RANK-004"], source=BLIND)
def global_ranks_are_ranks_of_the_group(addons: Any) -> None:
    """In a group that begins later, stages that trained one module differently are not seen to."""
    edit(
        addons,
        "gathering.py",
        "compared = tuple(ranks.index(rank) for rank in stages)",
        "compared = tuple(stages)",
    )


@mutant(kills=["RANK-004"], source=BLIND)
def stages_of_equal_shapes_are_not_compared(addons: Any) -> None:
    """Rank 0's values are saved, although another stage has trained the module differently."""
    edit(
        addons,
        "gathering.py",
        "if pp_group is None and len(contents) == 1:",
        "if len(contents) == 1:",
    )


@mutant(kills=["RANK-017"], source=BLIND)
def who_heard_of_a_failure_has_failed(addons: Any) -> None:
    """Ranks of another group hear of the wrong rank."""
    edit(
        addons,
        "ranks.py",
        "heard = group_size(group) if isinstance(failure, PeerError) else 0",
        "heard = 0",
    )


@mutant(kills=["RANK-017"], source=BLIND)
def last_dimension_alone_agrees_on_memory(addons: Any) -> None:
    """The ranks of the other dimension wait for those that have given up."""
    edit(
        addons,
        "whole.py",
        ("    for group in groups:\n"),
        ("    for group in groups[-1:]:\n"),
    )


@mutant(kills=["RANK-015"], source=BLIND)
def rank_without_rows_has_less_than_none(addons: Any) -> None:
    """A parameter of fewer rows than ranks cannot be saved."""
    edit(
        addons,
        "holdings.py",
        "first = min(length, chunk * at)",
        "first = chunk * at",
    )


@mutant(kills=["RANK-015"], source=BLIND)
def order_of_ranks_is_that_of_the_mesh(addons: Any) -> None:
    """Under FSDP2 over tensor parallel the shards of some parameters change places."""
    edit(
        addons,
        "holdings.py",
        "key = (mesh, tuple(axes))",
        "key = mesh",
    )


@mutant(kills=["RANK-015"], source=BLIND)
def uneven_rows_are_whatever_is_cut(addons: Any) -> None:
    """Padding comes between the rows of experts, which shifts them."""
    edit(
        addons,
        "whole.py",
        "in_rows = cut in ([], [0])",
        "in_rows = not any(cut)",
    )


@mutant(kills=["RANK-010"], source=BLIND)
def none_agrees_with_anything(addons: Any) -> None:
    """A dtype that one rank passes and another does not is no error."""
    edit(
        addons,
        "hooks.py",
        "            if first[name] != value:",
        "            if value is not None and first[name] != value:",
    )


@mutant(kills=["RANK-012"], source=BLIND)
def links_in_a_destination_stay(addons: Any) -> None:
    """Ranks that spell one directory in two ways are refused."""
    edit(
        addons,
        "staged.py",
        "place = Path(directory).resolve()",
        "place = Path(directory).absolute()",
    )


@mutant(kills=["TGT-019"], source="the reference until December 2026")
def turned_layers_beside_experts_are_parameters(addons: Any) -> None:
    """PEFT reads the weight of a square Conv1D called up_proj as [out, in]."""
    edit(addons, "targets.py", "not (one.fused or one.turned)", "not one.fused")
