# SPDX-License-Identifier: Apache-2.0
"""The server of readers: clean processes for those who ask, and workers of xdist that begin as its forks."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace

import pytest

from spec_tests import plugin
from spec_tests.consumers import clean_process, server, stand_in
from spec_tests.harness.environment import ReaderError
from spec_tests.harness.ranks import SOON


def is_offline():
    from transformers.utils import hub

    return hub.is_offline_mode(), os.environ["HF_HUB_OFFLINE"]


def test_readers_ask_no_hub():
    assert clean_process.in_clean_process(is_offline) == (True, "1")


def test_server_of_readers_that_cannot_start_is_the_environments_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ReaderError, match="the server of the readers must start, got its exit code 1"):
        server.started()


def test_server_of_readers_outlives_those_who_leave_at_once():
    address, key = server.started()
    with socket.socket(socket.AF_UNIX) as leaving:
        leaving.connect(address)
    with pytest.raises(AuthenticationError):
        Client(address, "AF_UNIX", b"another key")
    with Client(address, "AF_UNIX", key) as line:
        assert line.poll(0) is False  # it is let in, and asks nothing


def test_workers_share_one_server_of_readers(sample):
    body = "open(f'asked-{os.getpid()}', 'w').write(str(in_clean_process(os.getppid)))"
    imported = "from spec_tests.consumers.clean_process import in_clean_process"
    sample.tests(
        one=body,
        two=body,
        many=f"{imported}\n@pytest.fixture(autouse=True)\ndef wait():\n    import time; yield; time.sleep(0.5)",
    )
    assert sample.run("-n2").ret == 0
    said = list(sample.directory.glob("asked-*"))
    assert (len(said), len({path.read_text() for path in said})) == (2, 1)


def test_readers_that_cannot_be_imported_say_why(monkeypatch, tmp_path):
    for name in ("torch", "transformers", "peft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} is broken here')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(clean_process, "_servers", [])
    clean_process.use(*server.started(at_once=True))
    with pytest.raises(RuntimeError, match="torch is broken here"):
        clean_process.in_clean_process(is_offline)


TOLD = """
import atexit, json, multiprocessing, os, signal, sys
from huggingface_hub import constants
import numpy
given = sys.stdin.readline()
print(json.dumps({
    "argv": sys.argv, "given": given, "directory": os.getcwd(), "environment": dict(os.environ),
    "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "imported": [name for name in ("torch", "transformers", "peft") if name in sys.modules],
    "main": __name__, "offline": constants.HF_HUB_OFFLINE, "number": numpy.random.rand(),
    "method": multiprocessing.get_start_method(allow_none=True),
}))
print("heard", file=sys.stderr)
atexit.register(print, "left")
if given == "end\\n":
    os._exit(3)
"""

GIVEN = {"PATH": os.environ["PATH"], "ONE": "1", "LC_ALL": "C.UTF-8"}


def begun(directory, code, address="", stdin=subprocess.DEVNULL):
    """The process of a stand-in that has that code run; its environment holds little."""
    known, key = clean_process.server_in_use() or server.started()
    return subprocess.Popen(
        [*shlex.split(stand_in.command(address or known)), "-u", "-c", code],
        cwd=directory,
        env={**GIVEN, stand_in.KEY: key.hex()},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_worker_begins_as_its_command_would_but_for_what_is_imported(tmp_path):
    numbers = set()
    for given in ("return\n", "end\n"):
        process = begun(tmp_path, TOLD, stdin=subprocess.PIPE)
        said, errors = process.communicate(given, timeout=60)
        assert (process.returncode, errors) == (0, "heard\n")
        told, *left = said.splitlines()
        assert left == (["left"] if given == "return\n" else [])
        told = json.loads(told)
        numbers.add(told.pop("number"))
        assert told == {
            "argv": ["-c"],
            "given": given,
            "directory": str(tmp_path),
            "environment": GIVEN,
            "interrupted": True,
            "imported": ["torch", "transformers", "peft"],
            "main": "__main__",
            "offline": False,
            "method": None,
        }
    assert len(numbers) == 2


def test_worker_that_hangs_ends_with_what_xdist_can_kill(tmp_path):
    process = begun(tmp_path, "import os, time; print(os.getpid()); time.sleep(600)")
    worker = Path("/proc", process.stdout.readline().strip())
    assert worker.exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + SOON
    while (hangs := worker.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if hangs:
        os.kill(int(worker.name), signal.SIGKILL)
    process.communicate()
    assert not hangs


def test_worker_begins_without_a_server_too(tmp_path):
    process = begun(tmp_path, "import os, sys; print('torch' in sys.modules, os.environ['ONE'])", str(tmp_path / "no"))
    assert process.communicate(timeout=60) == ("False 1\n", "")


def test_workers_of_the_reference_begin_as_forks(monkeypatch):
    monkeypatch.setenv(stand_in.KEY, "")
    spec, kept = SimpleNamespace(python=None), pytest.Stash()
    plugin.pytest_xdist_setupnodes(SimpleNamespace(stash=kept), [spec])
    assert spec.python is None
    kept[plugin._READERS] = ("the address", b"key")
    plugin.pytest_xdist_setupnodes(SimpleNamespace(stash=kept), [spec])
    assert shlex.split(spec.python)[-2:] == [stand_in.__file__, "the address"]
    assert bytes.fromhex(os.environ[stand_in.KEY]) == b"key"
    monkeypatch.setattr(sys, "platform", "linux")
    run = {"numprocesses": 2, "impl": "reference", "collectonly": False, "markers": False, "showfixtures": False}
    for changed, forked in [
        ({}, True),
        ({"numprocesses": 0}, False),
        ({"impl": "package.module"}, False),
        ({"collectonly": True}, False),
    ]:
        assert plugin._forks_workers(SimpleNamespace(option=SimpleNamespace(**{**run, **changed}))) is forked, changed
