# SPDX-License-Identifier: Apache-2.0
"""ERR: a second save at once, where the process of the first forks in between (spec/errors.md)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from spec_tests.harness.export import error_of
from spec_tests.harness.ranks import SOON
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
REFUSED, SAVED = 7, 8


class ForkingTokenizer:
    """Forks a process that ends at once, as a loader of data does, and then saves nothing until it may."""

    def __init__(self):
        self.reached, self.may = threading.Event(), threading.Event()

    def save_pretrained(self, directory):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        self.reached.set()
        self.may.wait(SOON)
        (Path(directory) / "tokenizer.json").write_text("{}")


def save(impl, place, note, tokens=None):
    config = impl.peft_config(dim=4, alpha=8, note=note)
    impl.save_adapter(TREE.build(), place, config, tokenizer=tokens)


def end_of(pid, seconds):
    """The exit code of the process; None where it goes on so long, and is then ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class LeavingTokenizer:
    """Forks a process that says that it is there and lives on, and waits to be killed."""

    def __init__(self, said):
        self.said = said

    def save_pretrained(self, _directory):
        child = os.fork()
        if child == 0:
            # Said here: what a fork does first, such as letting go of a lock, it has done by now.
            self.said.with_suffix(".part").write_text(str(os.getpid()))
            self.said.with_suffix(".part").rename(self.said)
        time.sleep(SOON)
        if child == 0:
            os._exit(0)


@pytest.mark.clause("ERR-010")
@pytest.mark.needs("save_adapter")
def test_fork_that_outlives_a_killed_save_keeps_nobody_out(impl, fresh_dir):
    parent = fresh_dir()
    save(impl, parent / "out", "first")
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            save(impl, parent / "out", "killed", LeavingTokenizer(parent / "child"))
        os._exit(1)
    deadline = time.monotonic() + SOON
    while not (parent / "child").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        error = error_of(lambda: save(impl, parent / "out", "second"))
    finally:
        os.kill(int((parent / "child").read_text()), signal.SIGKILL)
    assert error is None
    assert json.loads((parent / "out" / "automodel_peft_config.json").read_text())["note"] == "second"


@pytest.mark.clause("ERR-009")
@pytest.mark.needs("save_adapter")
def test_second_save_is_kept_out_after_a_fork_too(impl, fresh_dir):
    place, tokens = fresh_dir() / "out", ForkingTokenizer()
    first = threading.Thread(target=save, args=(impl, place, "first", tokens))
    first.start()
    assert tokens.reached.wait(SOON)
    pid = os.fork()  # another process, as another job would be
    if pid == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            os._exit(SAVED if error_of(lambda: save(impl, place, "second")) is None else REFUSED)
        os._exit(1)
    code = end_of(pid, 3)
    tokens.may.set()
    first.join(SOON)
    assert code in (REFUSED, None)
    assert json.loads((place / "automodel_peft_config.json").read_text())["note"] == "first"
