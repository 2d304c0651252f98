# SPDX-License-Identifier: Apache-2.0
"""Bindings of foreign implementations, tried without one: NeMo AutoModel's releases, and layouts by their paths."""

from __future__ import annotations

import importlib
import json
import os
import sys

import pytest

from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.known_failures import read_known_failures
from spec_tests.harness.paths import area_tests, package_dir
from spec_tests.implementations.paths import from_paths
from spec_tests.loading import load
from spec_tests.meta.forks import conformance_in_a_fork, program_in_a_fork, script_in_a_fork

KNOWN = package_dir() / "implementations" / "known_failures" / "nemo_automodel.toml"
# As little of a release as the binding reads.
RELEASE = {
    "__init__.py": "__version__ = '0.5.1+482e1f6'",
    "components/__init__.py": "",
    "components/checkpoint/__init__.py": "",
    "components/checkpoint/addons.py": """
class PeftAddon: ...
class ConsolidatedHFAddon: ...
def _config_exists(path, name): ...
def _extract_target_modules(model, v4_compatible=False): ...
def _is_group_rank_0(group): ...
""",
    "components/checkpoint/stateful_wrappers.py": """
class ModelState:
    def __init__(self, model, is_peft=False, pp_group=None): self.model = [model]
    def state_dict(self): return {"a.lora_A.weight": 1, "a._extra_state": 2}
""",
    "components/checkpoint/checkpointing.py": """
def _maybe_adapt_state_dict_to_hf(part, state, quantization=False, **kwargs):
    return {**state, "given": sorted(kwargs)}
""",
    "components/checkpoint/state_dict_adapter.py": "class StateDictAdapter: ...",
    "components/moe/__init__.py": "",
    "components/moe/state_dict_mixin.py": """
class MoESplitExpertsStateDictMixin:
    _is_gated_moe = True
    def _convert_single_merged_expert_to_hf_split_experts(self, name, tensor, **kwargs):
        return [(f"expert {self.moe_config.n_routed_experts}", tensor)] if "lora_down_A" in name else None
""",
    "components/models/__init__.py": "",
    "components/models/qwen3_moe/__init__.py": "",
    "components/models/qwen3_moe/state_dict_adapter.py": """
class Qwen3MoeStateDictAdapter:
    def __init__(self, config, moe_config, backend): self.moe_config = moe_config
    def to_hf(self, state, **kwargs):
        return {"sizes": (self.moe_config.n_routed_experts, self.moe_config.moe_inter_dim)}
""",
}
LOOK = """
import json, torch
from spec_tests.loading import load
impl = load("nemo_automodel")
state = {"x.lora_down_A": torch.zeros(3, 5, 2), "y": torch.zeros(1)}
print(json.dumps({
    "version": impl.version,
    "claims": sorted(impl.claims - set(impl.helpers)),
    "helpers": sorted(impl.helpers),
    "tensors": impl.adapter_tensors(impl.model_state(object(), pp_group="group"), v4_compatible=True),
    "fused": impl.adapters["qwen3_moe"](None).to_hf(state),
    "split": sorted(impl.adapters["moe"](True).to_hf(state)),
}))
"""


def installed(tmp_path, files):
    """The environment in which a package `nemo_automodel` with those files is installed."""
    for name, text in files.items():
        path = tmp_path / "nemo_automodel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    paths = [str(tmp_path), str(package_dir().parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_absent_release_is_a_usage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo_automodel", None)
    monkeypatch.delitem(sys.modules, "spec_tests.implementations.nemo_automodel", raising=False)
    with pytest.raises(pytest.UsageError, match="--impl nemo_automodel: cannot be imported"):
        load("nemo_automodel")


@pytest.mark.parametrize(
    "files",
    [
        {"__init__.py": "__version__ = '0.1.0'"},
        {**RELEASE, "components/checkpoint/checkpointing.py": "from transformers.utils import NOTHING_OF_THAT_NAME"},
    ],
    ids=["without the module", "for another transformers"],
)
def test_release_that_does_not_import_is_exit_code_4(tmp_path, files):
    installed(tmp_path, files)
    code, said = program_in_a_fork(tmp_path, "--impl", "nemo_automodel", "--jobs", "0", path=str(tmp_path))
    assert code == pytest.ExitCode.USAGE_ERROR, said
    assert "--impl nemo_automodel: cannot be imported" in said


def test_binding_reads_the_claims_off_the_release(tmp_path):
    installed(tmp_path, RELEASE)
    code, said = script_in_a_fork(LOOK, tmp_path, tmp_path)
    assert code == 0, said
    assert json.loads(said) == {
        "version": "0.5.1",
        "claims": [
            "automodel_peft_config",
            "consolidated",
            "dict_config",
            "moe_adapter",
            "non_gated_experts",
            "pp_group",
            "process_group",
            "qwen3_moe_adapter",
        ],
        "helpers": ["_config_exists", "_extract_target_modules"],
        "tensors": {"a.lora_A.weight": 1, "given": ["device_mesh", "v4_compatible"]},
        "fused": {"sizes": [3, 5]},
        "split": ["expert 3", "y"],
    }


def functions_of_areas():
    """Every test function of the areas, with its clauses."""
    for path in area_tests():
        for name, test in vars(importlib.import_module(f"spec_tests.areas.{path.stem}")).items():
            marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
            yield name, test, tuple(clause for mark in marks if mark.name == "clause" for clause in mark.args)


def test_known_failures_of_the_releases_name_clauses_and_tests_that_exist():
    tests = {name for name, _, _ in functions_of_areas()}
    for entry in read_known_failures(KNOWN):
        assert entry.clause in load_clauses(), entry
        assert entry.case is None or entry.case.partition("[")[0] in tests, entry


def test_hardening_failure_that_generated_inputs_found_has_its_smallest_example():
    hardening = [entry for entry in read_known_failures(KNOWN) if load_clauses()[entry.clause].level == "hardening"]
    found = [
        (entry, name, test)
        for name, test, clauses in functions_of_areas()
        for entry in hardening
        if getattr(test, "is_hypothesis_test", False) and entry.matches(name, clauses)
    ]
    assert found
    assert [str(entry) for entry, _, _ in found if not entry.example] == []
    # A known failure binds to a fixed input, never to a draw.
    assert [name for _, name, test in found if not getattr(test, "hypothesis_explicit_examples", ())] == []


TRAINER = {
    "mytrainer/__init__.py": "__version__ = '3.1'",
    "mytrainer/export/__init__.py": "",
    "mytrainer/export/lora.py": """
from addons import PeftAddon
from addons import _config_exists as is_there

class LoraHooks:
    def pre_save(self, *, output_dir=None, **kwargs):
        if output_dir is None:
            raise TypeError("output_dir is missing")
        PeftAddon().pre_save(model_path=output_dir, **kwargs)

    def post_save(self, **kwargs):
        PeftAddon().post_save(**kwargs)
""",
    "mytrainer/state.py": "from addons import ModelState as TrainState",
    "mytrainer/names.py": "from addons import EncoderStateDictAdapter as WithoutPrefix",
}


def example_in_the_readme():
    """The code block that binds a trainer by its paths."""
    readme = (package_dir().parent / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in readme.split("```python\n")[1:] if "from_paths(" in block]
    return example.partition("```")[0]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    for name, text in {**TRAINER, "binding.py": example_in_the_readme()}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in {"mytrainer", "binding"}]:
        del sys.modules[name]


def test_layout_of_another_trainer_is_bound_by_its_paths(trainer):
    implementation = load(str(trainer / "binding.py"))
    assert (implementation.name, implementation.version) == ("mytrainer", "3.1")
    assert implementation.peft_addon.__name__ == "LoraHooks"
    assert implementation.claims == {"encoder_adapter", "model_parts", "_config_exists"}
    assert (set(implementation.adapters), set(implementation.helpers)) == ({"encoder"}, {"_config_exists"})
    assert implementation.consolidated_addon is implementation.save_adapter is None


def test_run_against_bound_paths_is_conformant_for_what_they_have(trainer):
    # RANK-004 needs what it does not claim; of HOOK-004 the cases are left out that are about whole models; for
    # TGT-006 a child process loads it again.
    ids = ("TGT-001", "TGT-006", "TGT-015", "HOOK-004", "RANK-004")
    done = conformance_in_a_fork("--impl", str(trainer / "binding.py"), *(f"--clause={name}" for name in ids))
    outcomes = {name: found["outcome"] for name, found in done.report["clauses"].items()}
    assert outcomes == {**dict.fromkeys(ids, "PASS"), "RANK-004": "NOT-CLAIMED"}, done.output


@pytest.mark.parametrize("path", ["mytrainer.nowhere:Name", "mytrainer.state:NoSuchState", "no_such_package:Name"])
def test_path_that_leads_nowhere_is_a_usage_error(trainer, path):
    with pytest.raises(pytest.UsageError, match=path):
        from_paths("mytrainer", peft_addon="mytrainer.export.lora:LoraHooks", model_state=path)
