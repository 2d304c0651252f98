# SPDX-License-Identifier: Apache-2.0
"""Every form of ``--impl``, and what an implementation then is."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from spec_tests.implementations.base import Implementation, TrainerPeftConfig, trainer_peft_config
from spec_tests.implementations.package import claimed_capabilities, from_package
from spec_tests.loading import load
from spec_tests.meta.forks import script_in_a_fork

BUNDLED = Path(importlib.util.find_spec("addons").submodule_search_locations[0])
BINDING = """\
import addons
from spec_tests.implementations.package import from_package
IMPLEMENTATION = from_package(addons, "mine")
"""


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    # Loading a copy or a file extends both.
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def package_of(implementation):
    return implementation.peft_addon.__module__.partition(".")[0]


def test_reference_is_the_bundled_package():
    reference = load("reference")
    assert (reference.name, package_of(reference)) == ("reference", "addons")


def test_vendored_is_a_copy_under_a_random_name():
    names = [package_of(load("vendored")) for _ in range(2)]
    assert len({*names, "addons"}) == 3


def test_child_process_finds_a_vendored_copy():
    name = package_of(load("vendored"))
    # It finds it, and does not import it, which takes seconds.
    code = f"import importlib.util as u; print(u.find_spec({name!r}).origin)"
    child = subprocess.run([sys.executable, "-c", code], cwd=os.sep, capture_output=True, text=True, check=True)
    assert Path(child.stdout.strip()).samefile(sys.modules[name].__file__)


def test_vendored_copy_is_removed_at_exit(tmp_path):
    code = "from spec_tests.loading import load; load('vendored')"
    said = script_in_a_fork(f"{code}; import os; print(os.listdir())", tmp_path, TMPDIR=str(tmp_path))
    assert (said[0], "addons-copy-" in said[1]) == (0, True), said
    assert not list(tmp_path.glob("addons-copy-*"))


def test_directory_of_a_copy_under_any_name(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "our-hooks")
    (tmp_path / "our-hooks" / "__init__.py").open("a", encoding="utf-8").write("\n__version__ = '7.7'\n")
    copied = load(str(tmp_path / "our-hooks"))
    assert copied.version == "7.7"
    assert package_of(copied) != "addons"


@pytest.mark.parametrize("attribute", ["", ":IMPLEMENTATION"])
def test_file_with_a_binding(tmp_path, attribute):
    (tmp_path / "binding_of_mine.py").write_text(BINDING, encoding="utf-8")
    assert load(f"{tmp_path / 'binding_of_mine.py'}{attribute}").name == "mine"


def test_dotted_module_with_a_binding(tmp_path, monkeypatch):
    (tmp_path / "trainer_of_mine").mkdir()
    (tmp_path / "trainer_of_mine" / "bind.py").write_text(BINDING.replace("IMPLEMENTATION", "OURS"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("trainer_of_mine.bind:OURS").name == "mine"


def test_dotted_module_with_the_names_of_the_contract():
    found = load("addons.peft_addon")
    assert (found.name, found.helpers) == ("addons.peft_addon", {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no_such_module.at_all", None, "No module named 'no_such_module'"),
        ("absent.py", None, "no file"),
        ("broken.py", "import no_such_module", "No module named 'no_such_module'"),
        ("exits.py", "raise SystemExit('no licence')", "SystemExit: no licence"),
        ("empty.py", "", "no IMPLEMENTATION in empty"),
        ("wrong.py:OURS", "OURS = 3", "OURS is int in wrong"),
    ],
)
def test_name_that_gives_no_implementation_is_a_usage_error(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name.partition(":")[0]).write_text(content, encoding="utf-8")
    with pytest.raises(pytest.UsageError) as error:
        load(name)
    assert name in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_run_with_a_broken_implementation_exits_with_four(sample, workers):
    (sample.directory / "broken.py").write_text("import no_such_module", encoding="utf-8")
    sample.tests()
    result = sample.run(workers, "--impl", "broken.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--impl broken.py: cannot be imported: ModuleNotFoundError: *no_such_module*"])


def package(**names):
    module = types.ModuleType("some_trainer")
    vars(module).update({"PeftAddon": object, "ModelState": dict, "__version__": "3.1", **names})
    return module


def test_absent_names_are_unclaimed():
    bare = from_package(package(), "bare")
    assert (bare.consolidated_addon, bare.save_adapter, bare.adapters, bare.helpers) == (None, None, {}, {})
    assert (bare.version, bare.capabilities) == ("3.1", frozenset())


def test_capabilities_follow_from_names_and_declarations():
    foreign = from_package(package(save_adapter=print, _config_exists=print, SPEC_CAPABILITIES=("process_group",)), "x")
    assert foreign.claims == {"save_adapter", "process_group", "_config_exists"}
    copy = claimed_capabilities(package(__spec_version__="1.0"))
    assert "process_group" in copy
    assert copy.isdisjoint({"save_adapter", "consolidated", "qwen3_moe_adapter", "_config_exists"})


def test_adapters_are_instances_of_the_implementations_own_types():
    import addons

    adapters = load("reference").adapters
    assert [adapters["moe"](gated)._is_gated_moe for gated in (True, False)] == [True, False]
    assert isinstance(adapters["moe"](), addons.MoESplitExpertsStateDictMixin)
    assert isinstance(adapters["qwen3_moe"](), addons.Qwen3MoeStateDictAdapter)
    assert isinstance(adapters["encoder"](), addons.EncoderStateDictAdapter)


def test_peft_config_is_read_by_attribute_and_as_a_dict():
    config = trainer_peft_config(dim=4, target_modules=["q"], odd={"a": 1})
    assert (config.dim, config.alpha, config.odd, hasattr(config, "even")) == (4, 16, {"a": 1}, False)
    assert config.to_dict() == {**TrainerPeftConfig(dim=4, target_modules=["q"]).to_dict(), "odd": {"a": 1}}
    assert "extra" not in config.to_dict()


def test_every_field_of_a_loaded_implementation_is_documented():
    described = Implementation.__doc__.partition("Attributes:")[2]
    assert [name for name in Implementation.__dataclass_fields__ if f"{name}: " not in described] == []
