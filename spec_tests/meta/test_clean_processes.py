# SPDX-License-Identifier: Apache-2.0
"""The server of readers: clean processes for those who ask, and workers of xdist that begin as its forks."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest

from spec_tests.consumers import clean_process, server, worker
from spec_tests.harness.environment import ReaderError


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


TOLD = """
import json, os, signal, sys
from huggingface_hub import constants
given = sys.stdin.readline()
print(json.dumps({
    "argv": sys.argv, "given": given, "directory": os.getcwd(), "environment": dict(os.environ),
    "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "imported": [name for name in ("torch", "transformers", "peft") if name in sys.modules],
    "main": __name__, "offline": constants.HF_HUB_OFFLINE,
}))
print("heard", file=sys.stderr)
if given == "end\\n":
    os._exit(3)
"""


@pytest.mark.parametrize("given", ["return\n", "end\n"])
def test_worker_begins_as_its_command_would_but_for_what_is_imported(tmp_path, given):
    address, key = clean_process.server_in_use() or server.started()
    environment = {"PATH": os.environ["PATH"], "ONE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*shlex.split(worker.command(address)), "-u", "-c", TOLD]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environment, worker.KEY: key.hex()},
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "heard\n"), done.stderr
    told = json.loads(done.stdout)
    assert told.pop("environment").items() >= environment.items()
    assert told == {
        "argv": ["-c"],
        "given": given,
        "directory": str(tmp_path),
        "interrupted": True,
        "imported": ["torch", "transformers", "peft"],
        "main": "__main__",
        "offline": False,
    }
