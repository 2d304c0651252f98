# SPDX-License-Identifier: Apache-2.0
"""VENDORING.md, followed to the letter in an empty directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import addons
from spec_tests.harness.clauses import load_clauses, spec_version
from spec_tests.harness.paths import package_dir
from spec_tests.meta.forks import conformance_in_a_fork

FOLDER = Path(addons.__file__).parent


def commands():
    """The lines of the document's console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", (FOLDER / "VENDORING.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def clone(tmp_path):
    """A directory that looks like the clone that the document starts from."""
    shutil.copytree(FOLDER, tmp_path / "addons", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(command, cwd):
    # The interpreter of this run under the name that the document uses; the suite from where it is.
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(package_dir().parent)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.long
def test_every_step_works_as_written(clone):
    done = []
    for command in commands():
        # The whole conformance run is a run of its own; a clause of it shows that the copy is what is tested.
        one = "areas/test_tokenizer.py::test_no_tokenizer_no_files --clause TOK-002 --jobs 0"
        shortened = f"{command} {one}" if "spec_tests" in command else command
        result = run(shortened, clone)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        done.append(result.stdout)
    assert f"{addons.__version__} {addons.__spec_version__}" in done[-2]
    assert "your_project/checkpoint_addons" in done[-1]
    assert "verdict: conformant" in done[-1]


def test_check_sees_a_broken_copy(clone):
    copy = clone / "broken_copy"
    shutil.copytree(FOLDER, copy)
    source = (copy / "plain_json.py").read_text(encoding="utf-8")
    broken = source.replace("Callable[[torch.dtype], str] = str", "Callable[[torch.dtype], str] = lambda dtype: 'None'")
    assert broken != source
    (copy / "plain_json.py").write_text(broken, encoding="utf-8")
    done = conformance_in_a_fork("--impl", str(copy), "--clause", "META-002")
    assert done.report["clauses"]["META-002"]["outcome"] == "FAIL", done.output


def test_clauses_named_in_the_code_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py")))
    named = set(re.findall(r"\b[A-Z]{3,4}-\d{3}\b", sources))
    assert len(named) > 20
    assert named <= load_clauses().keys()


def test_version_stamp_is_the_specifications():
    assert addons.__spec_version__ == spec_version(load_clauses())


@pytest.mark.parametrize("name", ["LICENSE", "VENDORING.md", "py.typed"])
def test_what_travels_with_a_copy_is_in_the_folder(name):
    assert (FOLDER / name).exists()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_file_imports_only_itself_and_what_is_allowed(path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    imported = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", source, re.MULTILINE))
    roots = {name.partition(".")[0] for name in imported if not name.startswith(".")}
    assert roots <= set(sys.stdlib_module_names) | {"torch", "transformers", "safetensors"}
