# SPDX-License-Identifier: Apache-2.0
"""POST: bringing the metadata out (spec/post_save.md)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spec_tests.builders import hf
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.harness.export import INDEX_MAPPING, bring_out, refusal, snapshot, stage_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec


@pytest.mark.clause("POST-001", "POST-002")
@pytest.mark.parametrize("with_code", [True, False])
def test_staged_files_come_out_and_the_mapping_does_not(impl, fresh_dir, with_code):
    original = fresh_dir()
    (original / "parts" / "inner").mkdir(parents=True)
    (original / "modeling_x.py").write_text("import os\n")
    (original / "parts" / "inner" / "helper.py").write_text("y = 1\n")
    path = str(original) if with_code else None
    staged = stage_metadata(impl, hf.llama(), fresh_dir(), tokenizer=tokenizer(), original_model_path=path)
    before, consolidated = snapshot(staged), fresh_dir()
    bring_out(impl, staged, consolidated)
    assert INDEX_MAPPING in before
    assert ("parts/inner/helper.py" in before) is with_code
    assert snapshot(consolidated) == {name: content for name, content in before.items() if name != INDEX_MAPPING}


@pytest.mark.clause("POST-003")
@pytest.mark.parametrize("falsy", [None, ""])
def test_nothing_happens_when_only_shards_are_saved(impl, fresh_dir, monkeypatch, falsy):
    staged = stage_metadata(impl, hf.llama(), fresh_dir())
    # Below what is compared: a path of nothing is the working directory.
    monkeypatch.chdir(fresh_dir())
    before = snapshot(staged.parent)
    bring_out(impl, staged, falsy)
    assert snapshot(staged.parent) == before


@pytest.mark.clause("POST-004")
def test_second_post_save_gives_the_same_tree(impl, fresh_dir):
    staged, consolidated = stage_metadata(impl, hf.llama(), fresh_dir(), tokenizer=tokenizer()), fresh_dir()
    before = snapshot(staged)
    bring_out(impl, staged, consolidated)
    first = snapshot(consolidated)
    bring_out(impl, staged, consolidated)
    assert first
    assert snapshot(consolidated) == first
    assert snapshot(staged) == before


NOT_OWNED = st.sampled_from(["notes.txt", "handler.py", "logs/run.json", "config.yaml", "optimizer.pt", "README.md"])
OWNED = st.sampled_from(["config.v5.json", "generation_config.v5.json", "chat_template.json", "added_tokens.json"])


@pytest.mark.clause("POST-005")
@pytest.mark.needs("consolidated")
@given(others=st.sets(NOT_OWNED), stale=st.sets(OWNED, min_size=1))
@example(others=set(), stale={"config.v5.json"})
def test_stale_owned_files_go_and_others_stay(impl, fresh_dir, others, stale):
    fresh, consolidated = fresh_dir(), fresh_dir()
    bring_out(impl, stage_metadata(impl, hf.llama(), fresh_dir(), tokenizer=tokenizer()), fresh)
    for name in others | stale:
        (consolidated / name).parent.mkdir(exist_ok=True)
        (consolidated / name).write_text("earlier")
    bring_out(impl, stage_metadata(impl, hf.llama(), fresh_dir(), tokenizer=tokenizer()), consolidated)
    assert snapshot(consolidated) == {**snapshot(fresh), **dict.fromkeys(others, b"earlier")}


@pytest.mark.clause("POST-005")
@pytest.mark.needs("consolidated")
def test_tokenizer_of_somebody_else_stays(impl, fresh_dir):
    consolidated = fresh_dir()
    tokenizer().save_pretrained(consolidated)
    before = snapshot(consolidated)
    bring_out(impl, stage_metadata(impl, hf.llama(), fresh_dir(), tokenizer=None), consolidated)
    assert before.items() <= snapshot(consolidated).items()


@pytest.mark.clause("POST-005")
@pytest.mark.needs("save_adapter")
def test_directory_of_somebody_else_inside_one_of_the_saves_own_stays(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "out"
    (original / "parts").mkdir()
    (original / "modeling_x.py").write_text("from .parts.helper import y\n")
    (original / "parts" / "helper.py").write_text("y = 1\n")

    def save():
        model = TreeSpec((Leaf("layers.0.q"),)).build()
        impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=8), original_model_path=str(original))

    save()
    (directory / "parts" / "mine").mkdir()
    (directory / "parts" / "mine" / "notes.txt").write_text("mine")
    before = snapshot(directory)
    save()
    assert snapshot(directory) == before


@pytest.mark.clause("POST-005")
@pytest.mark.needs("consolidated")
def test_stale_metadata_goes_from_the_staging_too(impl, fresh_dir):
    original, staged = fresh_dir(), fresh_dir()
    (original / "config.json").write_text(hf.llama().config.to_json_string())
    stage_metadata(impl, hf.llama(), staged, v4_compatible=True, original_model_path=str(original))
    assert (staged / "config.v5.json").exists()
    stage_metadata(impl, hf.llama(), staged)
    assert not (staged / "config.v5.json").exists()


@pytest.mark.clause("POST-006")
@pytest.mark.parametrize("name", ["hf_metadata_dir", "hf_metadata_path"])
def test_both_names_of_the_metadata_directory_are_accepted(impl, fresh_dir, name):
    staged, consolidated = stage_metadata(impl, hf.llama(), fresh_dir()), fresh_dir()
    before = (staged / "config.json").read_bytes()
    bring_out(impl, staged, consolidated, name)
    assert (consolidated / "config.json").read_bytes() == before


@pytest.mark.clause("POST-009")
def test_missing_metadata_is_named(impl, fresh_dir):
    nowhere, consolidated = fresh_dir() / "nowhere", fresh_dir()
    refusal(lambda: bring_out(impl, nowhere, consolidated), consolidated, naming=str(nowhere), kinds=OSError)


@pytest.mark.clause("POST-004")
@pytest.mark.parametrize("nested", ["the same", "consolidated inside", "consolidated deep inside", "staging inside"])
def test_directories_inside_each_other_are_told_apart(impl, fresh_dir, nested):
    staged = fresh_dir()
    below = {"consolidated inside": "consolidated", "consolidated deep inside": "model/hf/consolidated"}.get(nested, "")
    consolidated = staged / below
    if nested == "staging inside":
        staged, consolidated = staged / ".hf_metadata", staged
    for directory in (staged, consolidated):
        directory.mkdir(exist_ok=True, parents=True)
    stage_metadata(impl, hf.llama(), staged)
    for _ in range(2):
        bring_out(impl, staged, consolidated)
    names = {"config.json", "generation_config.json"}
    expected = {
        "the same": names | {INDEX_MAPPING},
        **{one: names | {INDEX_MAPPING} | {f"{below}/{name}" for name in names} for one in (nested,) if below},
        "staging inside": names,
    }
    assert (
        set(snapshot(staged if below else consolidated)) - {f".hf_metadata/{name}" for name in names | {INDEX_MAPPING}}
        == expected[nested]
    )
