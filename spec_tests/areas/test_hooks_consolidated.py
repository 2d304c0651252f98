"""HOOK: the hooks of whole models (spec/hooks.md)."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from spec_tests.builders import hf
from spec_tests.builders.families import MODELS, WHOLE
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import (
    WRONG_VALUE,
    error_of,
    refusal,
    run_consolidated,
    same_numbers,
    snapshot,
    spelled,
    stage_metadata,
    text_of,
)


def metadata_keywords(impl, directory):
    return {
        "hf_metadata_dir": str(directory),
        "model_state": impl.model_state(hf.llama(), is_peft=False),
        "tokenizer": tokenizer(),
        "fqn_to_file_index_mapping": {"lm_head.weight": 1},
        "original_model_path": None,
        "v4_compatible": False,
    }


@pytest.mark.clause("HOOK-001")
@pytest.mark.needs("consolidated")
def test_hooks_for_whole_models_take_keywords_and_return_none(impl, fresh_dir):
    directory, consolidated = fresh_dir(), fresh_dir()
    addon = impl.consolidated_addon()
    for hook in (addon.pre_save, addon.post_save):
        parameters = inspect.signature(hook).parameters.values()
        assert [parameter.kind for parameter in parameters] == [inspect.Parameter.VAR_KEYWORD]
    assert run_consolidated(impl, "pre_save", **metadata_keywords(impl, directory)) is None
    paths = {"consolidated_path": str(consolidated), "hf_metadata_path": str(directory)}
    assert run_consolidated(impl, "post_save", **paths) is None


@pytest.mark.clause("HOOK-003")
@pytest.mark.needs("consolidated")
def test_unknown_keywords_change_no_staged_file(impl, fresh_dir):
    plain, superset = fresh_dir(), fresh_dir()
    run_consolidated(impl, "pre_save", **metadata_keywords(impl, plain))
    more = {"model_path": str(superset / "elsewhere"), "peft_config": None, "an_option_of_tomorrow": object()}
    run_consolidated(impl, "pre_save", **metadata_keywords(impl, superset), **more)
    assert snapshot(superset) == snapshot(plain)


@pytest.mark.clause("HOOK-004")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("name", ["hf_metadata_dir", "model_state"])
def test_missing_required_keyword_for_whole_models_is_named(impl, fresh_dir, name):
    directory = fresh_dir()
    save = {key: value for key, value in metadata_keywords(impl, directory).items() if key != name}
    refusal(
        lambda: run_consolidated(impl, "pre_save", **save),
        directory,
        naming=spelled(impl, "ConsolidatedHFAddon.pre_save", name),
        kinds=(KeyError, TypeError, ValueError),
    )


@pytest.mark.clause("HOOK-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_metadata_dir", 7),
        ("model_state", "state"),
        ("tokenizer", "org/tokenizer"),
        ("fqn_to_file_index_mapping", {"a": 0}),
        ("fqn_to_file_index_mapping", {"a": "1"}),
        ("fqn_to_file_index_mapping", {"a": True}),
        ("fqn_to_file_index_mapping", [1]),
        ("v4_compatible", 1),
        ("process_group", "world"),
    ],
)
def test_wrong_typed_keyword_for_whole_models_is_named(impl, fresh_dir, name, value):
    directory = fresh_dir()
    refusal(
        lambda: run_consolidated(impl, "pre_save", **{**metadata_keywords(impl, directory), name: value}),
        directory,
        naming=spelled(impl, "ConsolidatedHFAddon.pre_save", name),
        kinds=WRONG_VALUE,
    )


@pytest.mark.clause("HOOK-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("name", ["consolidated_path", "hf_metadata_path"])
def test_wrong_typed_directory_of_post_save_is_named(impl, fresh_dir, name):
    paths = {"consolidated_path": str(fresh_dir()), "hf_metadata_path": str(fresh_dir()), name: 3.5}
    error = error_of(lambda: run_consolidated(impl, "post_save", **paths))
    assert isinstance(error, (TypeError, ValueError)), error
    own = spelled(impl, "ConsolidatedHFAddon.post_save", name)
    # The metadata directory has two names (POST-006), and an error may use either.
    assert own in text_of(error) or (name == own == "hf_metadata_path" and "hf_metadata_dir" in text_of(error))


@pytest.mark.clause("HOOK-008")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("name", ["tokenizer", "original_model_path", "v4_compatible", "fqn_to_file_index_mapping"])
def test_optional_keyword_for_whole_models_may_be_left_out(impl, fresh_dir, name):
    given, left_out = fresh_dir(), fresh_dir()
    save = {**metadata_keywords(impl, given), "tokenizer": None}
    run_consolidated(impl, "pre_save", **save)
    fewer = {key: value for key, value in save.items() if key != name} | {"hf_metadata_dir": str(left_out)}
    run_consolidated(impl, "pre_save", **fewer)
    names = snapshot(given).keys() - ({"fqn_to_file_index_mapping.json"} if name.startswith("fqn") else set())
    assert {key: value for key, value in snapshot(left_out).items() if key in names} == {
        key: value for key, value in snapshot(given).items() if key in names
    }


@pytest.mark.clause("HOOK-009")
@pytest.mark.needs("consolidated")
def test_live_model_is_unchanged_by_staging_its_metadata(impl, fresh_dir):
    model = hf.llama()
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    generation = model.generation_config.to_dict()
    stage_metadata(impl, model, fresh_dir(), dtype=torch.bfloat16)
    assert same_numbers(model.state_dict(), weights)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)


@pytest.mark.clause("HOOK-007")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("kind", ["compile", "checkpoint"])
@pytest.mark.parametrize("says_tied", [False, True], ids=["", "its config says that it is tied"])
def test_wrapped_model_stages_the_metadata_of_the_bare_one(impl, fresh_dir, kind, says_tied):
    def model():
        made = hf.llama()
        made.config.tie_word_embeddings = says_tied
        return made

    bare, wrapped = fresh_dir(), fresh_dir()
    stage_metadata(impl, model(), bare)
    stage_metadata(impl, wrap(model(), "", kind), wrapped)
    assert snapshot(wrapped) == snapshot(bare)


@pytest.mark.clause("HOOK-010")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("family", WHOLE)
def test_second_staging_gives_the_same_bytes(impl, fresh_dir, family):
    directory, model = fresh_dir(), MODELS[family].build()

    def stage():
        return snapshot(stage_metadata(impl, model, directory, tokenizer=tokenizer()))

    assert stage() == stage()
