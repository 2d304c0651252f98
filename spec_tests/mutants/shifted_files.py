# SPDX-License-Identifier: Apache-2.0
"""Faults that shift a check and leave it in place: in what becomes of files.

Each was put in by somebody who had read the implementation and the specification, and no test.
"""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_source import BLIND, edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["POST-005"], source=BLIND)
def asynchronous_save_owns_weights_alone(addons: Any) -> None:
    """Configs of an earlier save stay beside the new model."""
    edit(
        addons,
        "save.py",
        "on_rank_zero(staged.group, staged.publish, CONFIG, MODEL_FILES)",
        "on_rank_zero(staged.group, staged.publish, CONFIG, WEIGHTS)",
    )


@mutant(kills=["POST-013"], source=BLIND)
def weights_alone_make_no_model(addons: Any) -> None:
    """An adapter is written into a directory that holds somebody's weights."""
    edit(
        addons,
        "save.py",
        "destination = destination_of(directory, (CONFIG, *WEIGHTS), into_other_checkpoint)",
        "destination = destination_of(directory, (CONFIG,), into_other_checkpoint)",
    )


@mutant(kills=["POST-014"], source=BLIND)
def subdirectory_gets_the_umasks_mode(addons: Any) -> None:
    """After each save others can read what was closed to them, or the reverse."""
    edit(
        addons,
        "publishing.py",
        ("            (following / name).mkdir(exist_ok=True)\n            make_alike(following / name, path)\n"),
        ("            (following / name).mkdir(exist_ok=True)\n"),
    )


@mutant(kills=["POST-005"], source=BLIND)
def nearest_directory_is_not_looked_at(addons: Any) -> None:
    """A user's file is dropped where the checkpoint has a directory of that name."""
    edit(
        addons,
        "publishing.py",
        "for parent in (destination / path for path in name.parents):",
        "for parent in (destination / path for path in name.parents[1:]):",
    )


@mutant(kills=["POST-014"], source=BLIND)
def group_of_a_directory_is_lost(addons: Any) -> None:
    """Its group cannot read the new directory any more."""
    edit(
        addons,
        "files.py",
        "if (old.stat().st_uid, old.stat().st_gid) != (new.stat().st_uid, new.stat().st_gid):",
        "if old.stat().st_uid != new.stat().st_uid:",
    )


@mutant(kills=["POST-012"], source=BLIND)
def weights_are_whatever_is_called_alike(addons: Any) -> None:
    """A user's `model-best-of-all.safetensors` is removed."""
    edit(
        addons,
        "save.py",
        '_NUMBER = "[0-9]" * 5',
        '_NUMBER = "*"',
    )


@mutant(kills=["POST-004"], source=BLIND)
def consolidated_directory_is_a_child(addons: Any) -> None:
    """One that lies deeper is copied into itself by the next save."""
    edit(
        addons,
        "hf_addon.py",
        "if source in target.parents and target in",
        "if source == target.parent and target in",
    )


@mutant(kills=["TOK-007"], source=BLIND)
def tokenizer_owns_the_processors_files(addons: Any) -> None:
    """A save with a mere tokenizer removes somebody's preprocessor."""
    edit(
        addons,
        "companions.py",
        ("for names in (TOKENIZER_FILES, PROCESSOR_FILES)\n"),
        ("for names in ((*TOKENIZER_FILES, *PROCESSOR_FILES),)\n"),
    )


@mutant(kills=["ERR-007"], source=BLIND)
def length_of_a_name_is_counted_in_letters(addons: Any) -> None:
    """A long name of other alphabets cannot be saved to."""
    edit(
        addons,
        "staging.py",
        "if len(os.fsencode(name)) > 200:",
        "if len(name) > 200:",
    )


@mutant(kills=["ERR-010"], source=BLIND)
def fork_keeps_the_lock(addons: Any) -> None:
    """The trainer is killed, a worker lives on, and nobody can save there any more."""
    edit(
        addons,
        "files.py",
        ('    file = path.open("ab")\n    _locked.add(file)\n'),
        ('    file = path.open("ab")\n'),
    )


@mutant(kills=["ERR-010"], source=BLIND)
def marker_goes_last(addons: Any) -> None:
    """Killed in the middle, a config stands without its weights."""
    edit(
        addons,
        "publishing.py",
        "_moved(source, destination, names, [Path(marker), *stale])",
        "_moved(source, destination, names, stale)",
    )


@mutant(kills=["CODE-004"], source=BLIND)
def links_lead_into_any_blobs(addons: Any) -> None:
    """A file of somebody else's is copied."""
    edit(
        addons,
        "companions.py",
        'target.parent == home.parent.parent / "blobs"',
        'target.parent.name == "blobs"',
    )


@mutant(kills=["CODE-008"], source=BLIND)
def wrapper_hides_a_stock_model(addons: Any) -> None:
    """Code is copied for a model that is to be loaded without any."""
    edit(
        addons,
        "seed_helpers.py",
        (
            "    model = None if model_part is None else unwrapped(model_part)\n"
            "    save_model_code(original_model_path, Path(hf_metadata_dir), model)"
        ),
        "    save_model_code(original_model_path, Path(hf_metadata_dir), model_part)",
    )


@mutant(kills=["CODE-006"], source=BLIND)
def slow_tokenizer_alone_is_local(addons: Any) -> None:
    """The class of the fast tokenizer still asks the hub."""
    edit(
        addons,
        "companions.py",
        "return [_local(item, directory) for item in value]",
        "return [_local(value[0], directory), *value[1:]]",
    )


@mutant(kills=["CODE-006"], source=BLIND)
def what_code_imports_need_not_be_there(addons: Any) -> None:
    """A reference is made local, and a file that its code imports is missing."""
    edit(
        addons,
        "companions.py",
        (
            "    from transformers.dynamic_module_utils import get_relative_import_files\n"
            "\n"
            '    reference = value.rpartition("--")[2]\n'
            "    try:\n"
            "        # As transformers will: with all that the module imports from beside it.\n"
            "        get_relative_import_files(directory / f\"{reference.partition('.')[0]}.py\")\n"
        ),
        (
            '    reference = value.rpartition("--")[2]\n'
            "    try:\n"
            "        (directory / f\"{reference.partition('.')[0]}.py\").stat()\n"
        ),
    )


@mutant(kills=["CODE-010"], source=BLIND)
def else_is_answered_by_except(addons: Any) -> None:
    """What an else imports gets no guard, and the file cannot be imported."""
    edit(
        addons,
        "compat_guards.py",
        "answered = node.body if isinstance(node, ast.Try) and _answers(node, missing) else []",
        "answered = [*node.body, *node.orelse] if isinstance(node, ast.Try) and _answers(node, missing) else []",
    )


@mutant(kills=["CODE-010"], source=BLIND)
def window_is_one_key_narrower(addons: Any) -> None:
    """The masks that stand in see one key less than those of transformers."""
    edit(
        addons,
        "attention_masks.py",
        "keys < queries - sliding_window",
        "keys <= queries - sliding_window",
    )


@mutant(kills=["CODE-010"], source=BLIND)
def single_query_sees_all(addons: Any) -> None:
    """In generation a query sees keys from before its window."""
    edit(
        addons,
        "attention_masks.py",
        "if query_length < 2 and self.sliding_window is None:",
        "if query_length < 2:",
    )


@mutant(kills=["CODE-010"], source=BLIND)
def window_as_wide_as_the_keys_is_no_mask(addons: Any) -> None:
    """None is returned where transformers made a mask."""
    edit(
        addons,
        "attention_masks.py",
        "keys >= sliding_window)",
        "keys > sliding_window)",
    )


@mutant(kills=["CODE-010"], source=BLIND)
def module_of_masks_itself_is_no_import(addons: Any) -> None:
    """Code that imports it whole gets no guard."""
    edit(
        addons,
        "compat_guards.py",
        'if any(f"{one}.".startswith(f"{MASKS}.") for one in',
        'if any(one.startswith(f"{MASKS}.") for one in',
    )


@mutant(kills=["CODE-011"], source=BLIND)
def guard_of_other_line_ends_is_another(addons: Any) -> None:
    """In a file of CRLF the guard is added at each save."""
    edit(
        addons,
        "compat_guards.py",
        (
            '    made = [guard.encode().replace(b"\\n", newline) for guard in guards]\n'
            "    if not (new := [guard for guard in made if guard not in source]):\n"
            "        return source\n"
        ),
        (
            "    new = [guard.encode() for guard in guards if guard.encode() not in source]\n"
            "    if not new:\n"
            "        return source\n"
            '    new = [guard.replace(b"\\n", newline) for guard in new]\n'
        ),
    )


@mutant(kills=["TOK-007"], source=BLIND)
def video_has_no_file_of_its_own(addons: Any) -> None:
    """Version 4 finds no settings of the video processor."""
    edit(
        addons,
        "companions.py",
        '_PARTS = ("feature_extractor", "image_processor", "video_processor")',
        '_PARTS = ("feature_extractor", "image_processor")',
    )


@mutant(kills=["TOK-009"], source=BLIND)
def feature_extractor_keeps_a_trainers_name(addons: Any) -> None:
    """No reader can import the class that the files name."""
    edit(
        addons,
        "companions.py",
        '_CLASS_KEYS = ("feature_extractor_type", "image_processor_type", "processor_class", "tokenizer_class")',
        '_CLASS_KEYS = ("image_processor_type", "processor_class", "tokenizer_class")',
    )
