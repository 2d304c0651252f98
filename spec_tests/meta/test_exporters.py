# SPDX-License-Identifier: Apache-2.0
"""The judge of exporters finds what was broken on purpose, by its clause, and nothing in what PEFT saves."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spec_tests.exporters import across, running
from spec_tests.exporters.cases import BY_ID, CATALOGUE
from spec_tests.exporters.command import folded
from spec_tests.exporters.directory import main as write_one
from spec_tests.exporters.judge import judge, spoken_of
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.export import snapshot
from spec_tests.subjects.put_in import NotPutIn, put_in

ADAPTER, MERGED = "adapter-llama", "merged-llama"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """PEFT's own saves of two cases: id -> (prepared case, directory)."""
    import peft

    found = {}
    for name in (ADAPTER, MERGED):
        prepared = running.prepare(BY_ID[name], tmp_path_factory.mktemp("cases"))
        case = prepared.place / "case"
        base = transformers.AutoModelForCausalLM.from_pretrained(case / "base")
        settings = json.loads((case / "case.json").read_text())["lora"]
        model = peft.get_peft_model(base, peft.LoraConfig(**settings))
        put_in(model, load_file(case / "delta.safetensors"))
        model = model.merge_and_unload() if name == MERGED else model
        model.save_pretrained(prepared.place / "export")
        found[name] = prepared
    return found


def found_in(prepared, export):
    return judge(prepared.case, prepared.place / "case" / "base", export, prepared.wanted)


@pytest.mark.parametrize("name", [ADAPTER, MERGED])
def test_nothing_is_found_in_what_peft_saves(saved, name):
    assert found_in(saved[name], saved[name].place / "export") == []


def change_config(name, **values):
    def change(export, _base):
        content = json.loads((export / name).read_text())
        (export / name).write_text(json.dumps({**content, **values}))

    return change


def change_tensors(change, name="adapter_model.safetensors", metadata=("format", "pt")):
    def changed(export, _base):
        tensors = {key: one.contiguous() for key, one in change(load_file(export / name)).items()}
        save_file(tensors, export / name, dict([metadata]))

    return changed


def without(ending):
    return lambda tensors: {key: one for key, one in tensors.items() if not key.endswith(ending)}


def beside_the_merged_weights(export, base):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(export))
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            module = name.removesuffix(".weight")
            if (key := f"{module}.lora_A.default.weight") in values:
                weight.add_(3.0 * values[f"{module}.lora_B.default.weight"] @ values[key])
    merged.save_pretrained(export)


def remove(name):
    return lambda export, _base: (export / name).unlink()


def turned(tensors):
    return {key: one.flip(0) if key.endswith("q_proj.lora_B.weight") else one for key, one in tensors.items()}


CONFIG = "adapter_config.json"
BROKEN = {
    "alpha of nothing": (change_config(CONFIG, lora_alpha=0), {"LOAD-002"}),
    "permuted rows": (change_tensors(turned), {"LOAD-002"}),
    "keys without a prefix": (
        change_tensors(lambda tensors: {key.removeprefix("base_model.model."): one for key, one in tensors.items()}),
        {"LOAD-001", "LOAD-002"},
    ),
    "one matrix less": (change_tensors(without("0.self_attn.q_proj.lora_B.weight")), {"LOAD-001", "LOAD-002"}),
    "rounded": (
        change_tensors(lambda tensors: {key: one.to(torch.bfloat16) for key, one in tensors.items()}),
        {"ADP-020"},
    ),
    "a file that is cut off": (
        lambda export, _base: (export / "adapter_model.safetensors").write_bytes(b"\0" * 9),
        {"LOAD-001", "LOAD-002", "ADP-010", "ADP-011"},
    ),
    "one target too many": (
        change_config(CONFIG, target_modules=["q_proj", "k_proj", "v_proj"]),
        {"LOAD-001", "ADP-010", "ADP-011"},
    ),
    "beside the merged weights": (beside_the_merged_weights, {"POST-013"}),
    "no config": (remove(CONFIG), {"LOAD-001", "LOAD-002", "ADP-010", "ADP-011"}),
}
WHOLE = "model.safetensors"
BROKEN_WHOLE = {
    "the base alone": (lambda export, base: shutil.copy(base / WHOLE, export / WHOLE), {"LOAD-003"}),
    "a wrapper's prefix": (
        change_tensors(lambda tensors: {f"_orig_mod.{key}": one for key, one in tensors.items()}, WHOLE),
        {"LOAD-003", "LOAD-011"},
    ),
    "no format": (change_tensors(dict, WHOLE, ("made", "by hand")), {"IDX-011"}),
    "another dtype in the config": (change_config("config.json", dtype="bfloat16"), {"CFG-007", "LOAD-003"}),
    "two files without an index": (
        lambda export, _base: (export / WHOLE).rename(export / "model-00001-of-00002.safetensors"),
        {"IDX-003", "LOAD-003"},
    ),
    "a layer less": (change_tensors(without("layers.1.mlp.up_proj.weight"), WHOLE), {"LOAD-003", "LOAD-011"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_adapter_is_found(saved, tmp_path, what):
    check_broken(saved[ADAPTER], tmp_path / "export", *BROKEN[what])


@pytest.mark.parametrize("what", BROKEN_WHOLE)
def test_broken_model_is_found(saved, tmp_path, what):
    check_broken(saved[MERGED], tmp_path / "export", *BROKEN_WHOLE[what])


def check_broken(prepared, export, breaks, clauses):
    shutil.copytree(prepared.place / "export", export)
    breaks(export, prepared.place / "case" / "base")
    findings = found_in(prepared, export)
    against = {clause for finding in findings for clause in finding.clauses}
    assert clauses <= against <= {*clauses, *prepared.case.about, "LOAD-001", "LOAD-002"}, findings


# --- how an exporter ends ---

ENDS = {
    "cannot": ("print('no such model'); sys.exit(3)", "cannot"),
    "refuses": ("raise ValueError('not with me')", "refused"),
    "leaves half of it": ("export.mkdir(); (export / 'a').write_text(''); raise OSError('full')", "failed"),
    "lacks a package": ("import no_such_package", "not judged"),
    "has no place for the values": ("class NotPutIn(ValueError): pass\nraise NotPutIn('q_proj')", "cannot"),
    "writes nothing": ("pass", "wrong"),
}


def run(tmp_path, text, name="adapter-qwen2"):
    binding = tmp_path / "binding.py"
    start = "import sys, os, pathlib\nexport = pathlib.Path(sys.argv[2]) / 'export'\n"
    binding.write_text(start + text)
    prepared = running.prepare(BY_ID[name], tmp_path)
    return running.judged(prepared, *running.run_exporter(prepared, [sys.executable, str(binding)]))


@pytest.mark.parametrize("what", ENDS)
def test_end_of_an_exporter(tmp_path, what):
    text, said = ENDS[what]
    result = run(tmp_path, text)
    assert result.said == said
    against = {clause for finding in result.findings for clause in finding.clauses}
    assert against == {"failed": {"ERR-001"}, "wrong": {"LOAD-001", "LOAD-002"}}.get(said, set())
    _, verdict = folded([result])
    assert verdict.conformant is (said == "refused")


def test_what_every_exporter_can_do_is_not_refused(tmp_path):
    result = run(tmp_path, "raise ValueError('not with me')", "adapter-llama")
    assert result.said == "failed"
    assert "not with me" in result.findings[0].text


def test_exporter_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 1.0)
    result = run(tmp_path, "import time; time.sleep(60)")
    assert result.said == "failed"
    assert "no end" in result.text


def test_ranks_have_the_variables_of_torchrun(tmp_path):
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')"
    text = f"print(*(os.environ[name] for name in {names})); assert os.environ['MASTER_PORT']; sys.exit(3)"
    assert run(tmp_path, text, "adapter-two-ranks").text in ("0 0 2 127.0.0.1", "1 1 2 127.0.0.1")


def test_rank_that_fails_ends_the_others(tmp_path):
    text = "import time\nif os.environ['RANK'] == '1': raise ValueError('rank 1')\ntime.sleep(60)"
    result = run(tmp_path, text, "adapter-two-ranks")
    assert (result.said, result.text) == ("refused", "ValueError: rank 1")


def test_exporter_of_another_model_is_not_judged(tmp_path):
    text = "import torch; from safetensors.torch import save_file\n"
    text += "save_file({'logits': torch.zeros(2, 8, 64)}, export.with_name('observed.safetensors'))"
    result = run(tmp_path, text)
    assert (result.said, result.findings) == ("not judged", [])


# --- the cases ---


def test_case_is_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        assert write_one(["adapter-ranks", str(tmp_path / name)]) == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_cases_name_clauses_that_exist_and_ask_for_an_effect(tmp_path):
    assert {clause for case in CATALOGUE for clause in spoken_of(case)} <= load_clauses().keys()
    for case in CATALOGUE:
        prepared = running.prepare(case, tmp_path)
        assert (prepared.wanted - prepared.base).abs().max() > 0.5, case.id


def test_values_without_a_place_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(NotPutIn, match="lora_A"):
        put_in(model, {"q.lora_A": torch.zeros(1, 2)})
    with pytest.raises(NotPutIn, match="shape"):
        put_in(model, {"weight": torch.zeros(1, 2)})


def test_table_across_versions_tells_what_is_wrong():
    right, wrong = {"said": "right", "findings": []}, {"said": "wrong", "findings": [{"text": "3.1 off"}]}
    found = {("new", "new"): {"a": right}, ("new", "old"): {"a": wrong}, ("old", "new"): {"a": right}}
    text = across.table(["new", "old"], {**found, ("old", "old"): {"a": right}})
    assert "| new | 1 right | 1 wrong |" in text
    assert "- a, new to old: 3.1 off" in text


@pytest.mark.parametrize(("writer", "reader"), [("/no/such/python", sys.executable), (sys.executable, "true")])
def test_environment_without_the_suite_is_named(writer, reader):
    with pytest.raises(SystemExit, match="suite's packages"):
        across._cases(writer, reader)
