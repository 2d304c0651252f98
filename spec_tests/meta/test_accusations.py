# SPDX-License-Identifier: Apache-2.0
"""Nobody is accused of a spelling: PEFT's own `save_pretrained`, bound to the hooks, is the witness."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from spec_tests.areas import test_adapter_config as adp
from spec_tests.areas import test_hooks as hooks
from spec_tests.areas import test_load as load
from spec_tests.builders import hf
from spec_tests.consumers import clean_process, headers
from spec_tests.harness.environment import ReaderError
from spec_tests.harness.export import hook_files, indexed_weights
from spec_tests.implementations.base import Implementation, trainer_peft_config

PLAIN = ["llama_injected", "llama_injected_rslora", "bert_injected_classifier"]


class State:
    """A model that PEFT has made."""

    def __init__(self, model, *, is_peft=True, pp_group=None) -> None:
        assert is_peft
        assert pp_group is None
        self.model = [model]


class Hooks:
    """PEFT's save between the hooks; keywords are named in the signature."""

    def pre_save(self, *, model_path, model_state, peft_config=None, **_) -> None:
        """Write the config."""
        with tempfile.TemporaryDirectory() as scratch:
            self._save(model_state.model[0], scratch, peft_config)
            shutil.copy(Path(scratch, "adapter_config.json"), model_path)

    def post_save(self, **_) -> None:
        """Nothing is left to do."""

    def _save(self, model, scratch, peft_config) -> None:
        import peft

        if not isinstance(model, peft.PeftModel):
            model = peft.get_peft_model(hf.llama(), peft.LoraConfig(r=peft_config.dim, target_modules=["q_proj"]))
        model.save_pretrained(scratch)


def tensors(model_state, **_form):
    import peft

    return peft.get_peft_model_state_dict(model_state.model[0])


PEFT = Implementation(
    name="peft",
    version="1",
    origin="a test of the suite",
    peft_addon=Hooks,
    consolidated_addon=None,
    model_state=State,
    peft_config=trainer_peft_config,
    adapters={},
    helpers={},
    adapter_tensors=tensors,
    save_adapter=None,
    capabilities=frozenset({"peft_injected"}),
)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(
    "test",
    [
        adp.test_fixed_values_and_types,
        adp.test_use_dora_is_there,
        adp.test_target_parameters_only_with_fused_experts,
        adp.test_use_dora_goes_with_magnitudes,
    ],
    ids=lambda test: test.__name__,
)
def test_config_in_pefts_own_words(fresh_dir, test, kind):
    test(PEFT, fresh_dir, kind)


def test_targets_that_peft_lists_by_the_ends_of_their_names(fresh_dir):
    kind = "llama_injected"
    written = adp.saved(PEFT, fresh_dir(), kind)
    assert max(len(name.split(".")) for name in written.config["target_modules"]) == 1
    adp.test_targets_are_the_modules_with_tensors(PEFT, fresh_dir, kind)


def test_target_that_has_no_tensors_is_still_seen(fresh_dir):
    written = adp.saved(PEFT, fresh_dir(), "llama_injected")
    everywhere = {name for name, _ in hf.llama().named_modules()}
    wider = {**written.config, "target_modules": [*written.config["target_modules"], "k_proj"]}
    assert adp.peft_reader.targeted(wider, everywhere) != adp.modules_with_tensors(written)


def test_keywords_in_the_signature_and_no_private_files(fresh_dir):
    assert hook_files(PEFT) == ["adapter_config.json"]
    hooks.test_hook_takes_keywords_and_returns_none(PEFT, fresh_dir, "pre_save")
    hooks.test_pre_save_writes_metadata_and_no_weights(PEFT, fresh_dir)


@pytest.mark.parametrize("kind", [*PLAIN, "llama_injected_patterns"])
def test_adapter_that_peft_saved_loads(fresh_dir, kind):
    load.test_lora_that_peft_injected_comes_back(PEFT, fresh_dir, kind)


def test_one_file_of_transformers_needs_no_index(tmp_path):
    model = hf.llama()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / headers.INDEX).exists()
    assert indexed_weights(tmp_path).keys() == model.state_dict().keys()
    assert headers.index(tmp_path)["metadata"]["total_size"] == headers.bytes_of_tensors(tmp_path)
    assert (headers.ghosts(tmp_path), headers.strangers(tmp_path), headers.unnamed_files(tmp_path)) == ([], [], [])


def import_what_is_not_there():
    import no_such_package_of_a_reader  # noqa: F401


def test_reader_without_a_package_is_the_environments_error(sample):
    with pytest.raises(ReaderError, match="no_such_package_of_a_reader"):
        clean_process.in_clean_process(import_what_is_not_there)
    raising = "from spec_tests.harness.environment import ReaderError\n    raise ReaderError('torchao is too old')"
    sample.tests(one=raising)
    result = sample.run("-n0", "--conformance")
    report = json.loads((sample.directory / "report.json").read_text())
    assert report["clauses"]["ALP-001"]["outcome"] == "NOT-TESTABLE"
    result.stdout.fnmatch_lines(["*NOT-TESTABLE: torchao is too old*"])
