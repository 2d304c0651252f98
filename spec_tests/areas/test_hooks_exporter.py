# SPDX-License-Identifier: Apache-2.0
"""HOOK: metadata exporters that the model provides (spec/hooks.md)."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.builders import hf
from spec_tests.builders.exporting import Exporter, exporting_model
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.training import shard
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import INDEX_MAPPING, bring_out, error_of, refusal, snapshot, stage_metadata, text_of
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values

FILES = {
    "config.json": '{"auto_map": {"AutoModel": "org/model--reranking.Model"}}',
    "modules.json": "[]",
    "1_Pooling/config.json": "{}",
    "reranking.py": "x = 1\n",
}


@pytest.mark.clause("HOOK-011")
@pytest.mark.parametrize("wrapper", [None, "compile", "checkpoint"])
def test_exporter_is_asked_for_and_validates_first(impl, fresh_dir, wrapper):
    directory, asked, tokens, original = fresh_dir() / "staged", [], tokenizer(), fresh_dir()
    exporter = Exporter(FILES, watched=directory)
    model = exporting_model(exporter, asked)
    model = wrap(model, "", wrapper) if wrapper else model
    stage_metadata(impl, model, directory, tokenizer=tokens, original_model_path=str(original))
    said = {"tokenizer": tokens, "original_model_path": str(original)}
    assert asked
    assert all(one == said for one in asked)
    steps = [step for step, _ in exporter.calls]
    assert steps == ["validate"] * (len(steps) - 1) + ["save"]
    assert len(steps) > 1
    assert all(keywords == said for step, keywords in exporter.calls if step == "validate")
    assert exporter.seen[:-1] == [[]] * (len(steps) - 1)


@pytest.mark.clause("HOOK-011")
@pytest.mark.parametrize("earlier", [True, False])
def test_exporter_that_refuses_stops_the_save(impl, fresh_dir, earlier):
    directory, exporter = fresh_dir() / "staged", Exporter(FILES, failing="validate")
    if earlier:
        stage_metadata(impl, hf.llama(), directory)
    model = exporting_model(exporter)
    refusal(lambda: stage_metadata(impl, model, directory), directory, naming=str(exporter.error), kinds=Exception)
    assert directory.exists() is earlier


class NamingExporter(Exporter):
    """It names each keyword that it takes."""

    def save(self, *, hf_metadata_dir, tokenizer, original_model_path, v4_compatible):
        more = {"tokenizer": tokenizer, "original_model_path": original_model_path, "v4_compatible": v4_compatible}
        super().save(hf_metadata_dir=hf_metadata_dir, **more)


@pytest.mark.clause("HOOK-012")
@given(
    kind=st.sampled_from([NamingExporter, Exporter]),
    files=st.dictionaries(
        st.from_regex(r"(sub/)?[a-z]{1,5}\.(json|py|txt)", fullmatch=True), st.text("{}ab\u00e9 "), min_size=1
    ),
    v4_compatible=st.booleans(),
)
def test_exporter_writes_in_place_of_what_is_generated(impl, fresh_dir, kind, files, v4_compatible):
    original, directory, exporter = fresh_dir(), fresh_dir(), kind(files)
    (original / "modeling_x.py").write_text("x = 1\n")
    save = {"tokenizer": tokenizer(), "original_model_path": str(original), "v4_compatible": v4_compatible}
    stage_metadata(impl, exporting_model(exporter), directory, fqn_to_file_index_mapping={"a": 1}, **save)
    found = snapshot(directory)
    assert json.loads(found.pop(INDEX_MAPPING)) == {"a": 1}
    assert found == {name: text.encode() for name, text in files.items()}
    saves = [keywords for step, keywords in exporter.calls if step == "save"]
    assert len(saves) == 1
    assert saves[0].pop("hf_metadata_dir")
    assert saves[0]["tokenizer"] is save["tokenizer"]
    assert saves == [save]


@pytest.mark.clause("HOOK-012")
def test_references_in_the_exporters_config_stay_as_they_are(impl, fresh_dir):
    found = snapshot(stage_metadata(impl, exporting_model(Exporter(FILES)), fresh_dir()))
    assert {name: content.decode() for name, content in found.items() if name != INDEX_MAPPING} == FILES


@pytest.mark.clause("HOOK-013")
@pytest.mark.parametrize("failing", [None, "save"])
def test_exporters_files_appear_whole_or_not_at_all(impl, fresh_dir, failing):
    directory = fresh_dir()
    stage_metadata(impl, hf.llama(), directory, tokenizer=tokenizer())
    before = snapshot(directory)
    texts = {"config.json": "{}", "modules.json": "[]", "tokenizer_config.json": "{}"}
    exporter = Exporter(texts, failing=failing)
    error = error_of(lambda: stage_metadata(impl, exporting_model(exporter), directory))
    if failing:
        assert str(exporter.error) in text_of(error)
        assert snapshot(directory) == before
        return
    assert error is None
    # An index of files and a tokenizer of an earlier save would be read with the new ones.
    assert set(snapshot(directory)) == {*texts, INDEX_MAPPING}


@pytest.mark.clause("HOOK-013")
def test_exporters_files_come_out(impl, fresh_dir):
    staged, consolidated = stage_metadata(impl, exporting_model(Exporter(FILES)), fresh_dir()), fresh_dir()
    bring_out(impl, staged, consolidated)
    assert {name: content.decode() for name, content in snapshot(consolidated).items()} == FILES


@pytest.mark.clause("HOOK-014")
def test_model_without_an_exporter_of_its_own_is_saved_as_ever(impl, fresh_dir):
    save = {"tokenizer": tokenizer()}
    asked = snapshot(stage_metadata(impl, exporting_model(None), fresh_dir(), **save))
    assert asked == snapshot(stage_metadata(impl, hf.llama(), fresh_dir(), **save))


def export_on_a_rank(rank, world, impl, directory, failing):
    """Stage in a directory that all ranks share; one rank's exporter may refuse."""
    exporter = Exporter(FILES, failing="validate" if rank == failing else None)
    model = shard(exporting_model(exporter))
    try:
        stage_metadata(impl, model, directory)
    except Exception:
        assert failing is not None
        raise
    finally:
        written = sorted(snapshot(directory))
        assert failing is None or not written, written
    return [step for step, _ in exporter.calls]


@pytest.mark.clause("HOOK-011", "HOOK-012")
def test_every_rank_validates_and_one_saves(impl, fresh_dir):
    steps = values(run_ranks(2, export_on_a_rank, impl, fresh_dir() / "staged", None))
    assert "validate" in steps[0]
    assert "validate" in steps[1]
    assert [step.count("save") for step in steps] == [1, 0]


@pytest.mark.clause("HOOK-011")
@pytest.mark.parametrize("failing", [0, 1])
def test_refusal_on_one_rank_is_every_ranks(impl, fresh_dir, failing):
    directory = fresh_dir() / "staged"
    results = run_ranks(2, export_on_a_rank, impl, directory, failing, timeout=2 * SOON)
    assert all_failed(results), results
    assert all(result.error_type != "AssertionError" for result in results), results
    assert max(result.seconds for result in results) < SOON
    assert snapshot(directory) == {}


@pytest.mark.clause("HOOK-015")
@pytest.mark.needs("_save_generated_hf_assets")
@pytest.mark.parametrize("v4_compatible", [False, True], ids=["usual", "v4_compatible"])
@pytest.mark.parametrize(
    ("code", "stock"),
    [(True, False), (False, False), pytest.param(True, True, marks=pytest.mark.needs("stock_export"))],
    ids=["code", "no code", "of a stock model"],
)
@pytest.mark.parametrize("own_config", [True, False])
def test_exporter_may_leave_the_writing_to_the_add_on(impl, fresh_dir, own_config, code, stock, v4_compatible):
    original, directory, tokens = fresh_dir(), fresh_dir(), tokenizer()
    (original / "modeling_mine.py").write_text("x = 1\n")
    model, like = hf.llama(), hf.llama()
    (original / "config.json").write_text(model.config.to_json_string())
    model._export_as_stock_model = like._export_as_stock_model = stock
    deployed = copy.deepcopy(model.config)
    deployed.mark = "deployed"
    more = {"model_config": deployed} if own_config else {}
    like.config = deployed if own_config else like.config
    generated = impl.helpers["_save_generated_hf_assets"]
    generated(model, str(original), str(directory), tokens, v4_compatible, save_custom_model_code=code, **more)
    staged, form = fresh_dir(), {"v4_compatible": v4_compatible}
    stage_metadata(impl, like, staged, tokenizer=tokens, original_model_path=str(original), **form)
    wanted = {name: text for name, text in snapshot(staged).items() if code or not name.endswith(".py")}
    del wanted[INDEX_MAPPING]
    assert snapshot(directory) == wanted
    assert not hasattr(model.config, "mark")


class EarlyExporter(Exporter):
    """As the first ones were."""

    def save(self, *, hf_metadata_dir, tokenizer, original_model_path):
        super().save(hf_metadata_dir=hf_metadata_dir, tokenizer=tokenizer, original_model_path=original_model_path)


@pytest.mark.clause("HOOK-016")
@pytest.mark.parametrize("v4_compatible", [False, True])
def test_exporter_that_knows_no_old_form_is_not_asked_for_one(impl, fresh_dir, v4_compatible):
    directory, exporter = fresh_dir() / "staged", EarlyExporter(FILES)

    def save():
        stage_metadata(impl, exporting_model(exporter), directory, v4_compatible=v4_compatible)

    if v4_compatible:
        refusal(save, directory, naming="v4_compatible")
    else:
        save()
        assert (directory / "modules.json").read_text() == FILES["modules.json"]
