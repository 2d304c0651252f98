# SPDX-License-Identifier: Apache-2.0
"""ERR: saves that are interrupted, killed, or made twice at once (spec/errors.md)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spec_tests.builders import hf
from spec_tests.harness.export import error_of, indexed_weights, snapshot, text_of
from spec_tests.harness.kill import Steps, can_exchange, die_at
from spec_tests.harness.ranks import SOON, run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
OTHERS = {"notes.txt": b"mine", "runs/events.out": b"theirs", "additional_chat_templates/read.me": b"mine too"}
LINK = "latest"
"""Other people's link to a file of theirs; it has to stay a link."""
"""Files in the directory that are no save's."""


class Tokens:
    """A tokenizer of few files; the earlier one had a template more."""

    def __init__(self, *templates):
        self._templates = templates

    def save_pretrained(self, directory):
        for name in ("tokenizer_config.json", *self._templates):
            (Path(directory) / name).parent.mkdir(exist_ok=True)
            (Path(directory) / name).write_text("{}")


PLAIN, EARLIER = Tokens(), Tokens("additional_chat_templates/other.jinja", "chat_template.jinja")
INTO_THEIRS = Tokens("additional_chat_templates/new.jinja")
"""Its template goes where other people have a file."""


def adapter(impl, directory, number, tokens=PLAIN):
    model = replace(TREE, alpha=number).build()
    with torch.no_grad():
        model.get_submodule("model.layers.0.q_proj").lora_B.weight.fill_(number)
    impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=number), tokenizer=tokens)


def adapter_number(directory):
    said = json.loads((directory / "adapter_config.json").read_text())["lora_alpha"]
    tensors = load_file(directory / "adapter_model.safetensors")
    return {said, *(int(t[0, 0]) for key, t in tensors.items() if "lora_B" in key)}


def model(impl, directory, number, tokens=INTO_THEIRS):
    live = nn.Sequential(nn.Linear(number, 8), nn.Linear(8, 8))
    live.config = hf.llama().config
    live.config.hidden_size = number
    impl.save_consolidated(live, directory, tokenizer=tokens, max_shard_bytes=200 + 8 * number)


def model_number(directory):
    return {
        json.loads((directory / "config.json").read_text())["hidden_size"],
        indexed_weights(directory)["0.weight"].shape[1],
    }


KINDS = {"adapter": (adapter, adapter_number), "model": (model, model_number)}
OLD, NEW = 4, 12
MARKERS = {"adapter_config.json", "config.json"}
STRIDE = 4
"""Of the moments each test takes every fourth, and each another one first; `faults` takes all."""
kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("adapter", marks=pytest.mark.needs("save_adapter")),
        pytest.param("model", marks=pytest.mark.needs("save_consolidated")),
    ],
)
ways = pytest.mark.parametrize("inside", [False, True], ids=["usual", "in the working directory"])


def prepared(impl, parent, kind):
    """A directory as an earlier save and other people left it; and the names of a first save of the new one."""
    save, _ = KINDS[kind]
    save(impl, parent / "earlier" / "out", OLD, EARLIER)
    for name, content in OTHERS.items():
        (parent / "earlier" / "out" / name).parent.mkdir(exist_ok=True)
        (parent / "earlier" / "out" / name).write_bytes(content)
    (parent / "earlier" / "out" / LINK).symlink_to("notes.txt")
    save(impl, parent / "clean" / "out", NEW)
    return parent / "earlier" / "out", set(snapshot(parent / "clean" / "out"))


def others(found):
    return {name: content for name, content in found.items() if name in OTHERS}


def without_others(found):
    return {name: content for name, content in found.items() if name not in {*OTHERS, LINK} and not name.endswith("/")}


def fault(directory, before, names, number_of):
    """What is wrong with a directory that has to hold the earlier checkpoint or the new one; None if nothing."""
    found = snapshot(directory)
    if others(found) != OTHERS:
        return f"of other people's files there are {sorted(others(found))}"
    if not (directory / LINK).is_symlink():
        return "other people's link is none any more"
    own = without_others(found)
    if own == without_others(before):
        return None
    if own.keys() != names:
        return f"neither the files of the earlier checkpoint nor of the new one: {sorted(own)}"
    return None if number_of(directory) == {NEW} else "config and weights are of two saves"


def interrupt_everywhere(rank, world, impl, parent, kind, inside):
    earlier, names = prepared(impl, parent, kind)
    (save, number_of), steps, faults, reached = KINDS[kind], Steps(), [], True
    # In turns.
    errors = (KeyboardInterrupt(), OSError(errno.ENOSPC, "no space"))
    first = (kind == "model") + 2 * inside
    moment = first - STRIDE
    while reached:
        moment += STRIDE
        if moment < 1:
            continue
        place = parent / str(moment) / "out"
        shutil.copytree(earlier, place, symlinks=True)
        before = snapshot(place)
        if inside:
            os.chdir(place)
        steps.end_at(moment, errors[moment // STRIDE % 2])
        with contextlib.suppress(KeyboardInterrupt, OSError):
            save(impl, place, NEW)
        reached = steps.stop()
        if wrong := fault(place, before, names, number_of):
            faults.append((moment, wrong))
        save(impl, place, NEW)
        if (wrong := fault(place, {}, names, number_of)) or len(list(place.parent.iterdir())) > 1:
            faults.append((moment, "the next save", wrong))
        if inside:
            os.chdir(parent)
        shutil.rmtree(place.parent)
    return moment, faults


@pytest.mark.clause("ERR-008")
@kinds
@ways
def test_interrupted_save_leaves_the_one_or_the_other(impl, fresh_dir, kind, inside):
    ((moments, faults),) = values(run_ranks(1, interrupt_everywhere, impl, fresh_dir(), kind, inside))
    assert faults == []
    assert moments > 5


def save_once(rank, world, impl, place, kind, inside, moment):
    if inside:
        os.chdir(place)
    if moment:
        die_at(moment)
    KINDS[kind][0](impl, place, NEW)


def killed():
    """Every pair of a kind, a way to name the place, and what comes after."""
    needed = {"adapter": "save_adapter", "model": "save_consolidated"}
    for kind, needs in needed.items():
        for inside in (False, True):
            after = "recover" if inside == (kind == "model") else "the next save"
            marks = pytest.mark.needs(needs, *(["recover"] * (after == "recover")))
            yield pytest.param(kind, inside, after, marks=marks)


@pytest.mark.clause("ERR-010")
@pytest.mark.parametrize(("kind", "inside", "after"), list(killed()))
def test_killed_save_loses_nothing(impl, fresh_dir, kind, inside, after):
    parent, died = fresh_dir(), True
    moment = (kind == "model") + 2 * inside - STRIDE
    earlier, names = prepared(impl, parent, kind)  # in this process, whose forks are quick then
    at_once, number_of = can_exchange(parent) and not inside, KINDS[kind][1]
    while died:
        moment += STRIDE if after == "recover" else 2 * STRIDE
        if moment < 1:
            continue
        place = parent / str(moment) / "out"
        shutil.copytree(earlier, place, symlinks=True)
        before = snapshot(place)
        (result,) = run_ranks(1, save_once, impl, place, kind, inside, moment)
        died = result.error_type is not None
        assert result.error_type in (None, "Exited"), result.error
        there = without_others(snapshot(place))
        if at_once or MARKERS & there.keys():
            assert there == without_others(before) or (there.keys() == names and number_of(place) == {NEW}), moment
        if after == "recover":
            impl.recover(place)
        else:
            values(run_ranks(1, save_once, impl, place, kind, inside, 0))
        assert fault(place, before, names, number_of) is None, moment
        assert [path.name for path in place.parent.iterdir()] == ["out"], moment
        shutil.rmtree(place.parent)
    assert moment > 5


class WaitingTokenizer:
    """Saves nothing until it may."""

    def __init__(self):
        self.reached, self.may = threading.Event(), threading.Event()

    def save_pretrained(self, directory):
        self.reached.set()
        self.may.wait(SOON)
        (Path(directory) / "tokenizer.json").write_text("{}")


@pytest.mark.clause("ERR-009")
@kinds
def test_second_save_at_once_waits_or_is_refused(impl, fresh_dir, kind):
    (save, number_of), place, errors = KINDS[kind], fresh_dir() / "out", []
    save(impl, place, OLD)
    tokens = WaitingTokenizer()

    def second():
        try:
            save(impl, place, OLD)
        except Exception as error:  # noqa: BLE001 - whatever it raises is looked at below
            errors.append(text_of(error))

    threads = [threading.Thread(target=save, args=(impl, place, NEW, tokens)), threading.Thread(target=second)]
    threads[0].start()
    assert tokens.reached.wait(SOON)
    threads[1].start()
    threads[1].join(1)
    waits = threads[1].is_alive()
    tokens.may.set()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert number_of(place) == {NEW if errors else OLD}
    assert all(str(place) in text for text in errors)
    assert waits or errors
    assert [path.name for path in place.parent.iterdir()] == ["out"]


@pytest.mark.clause("ERR-009")
@pytest.mark.needs("save_consolidated")
def test_second_save_before_the_result_of_the_first_ends(impl, fresh_dir):
    place, ended = fresh_dir() / "out", []
    pending = impl.save_consolidated(hf.llama(), place, asynchronous=True)

    def second():
        ended.append(error_of(lambda: impl.save_consolidated(hf.llama(), place)))

    # As daemon: one that waits for the result that nobody asks for would never end.
    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    thread.join(SOON)
    in_time = not thread.is_alive()
    pending.result()
    thread.join(SOON)
    assert in_time
    assert ended[0] is None or str(place) in text_of(ended[0])
    assert "model.safetensors.index.json" in snapshot(place) or "model.safetensors" in snapshot(place)
