# SPDX-License-Identifier: Apache-2.0
"""Rows about the time of `save_consolidated`, beside `save_pretrained` of transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import addons
from spec_tests.bench import models
from spec_tests.bench.pairing import Contender, in_turn
from spec_tests.bench.rows import Figures, Places, Row, timed
from spec_tests.bench.written import sync, tensors

KINDS = {"disk": "to disk, synced", "tmpfs": "to tmpfs"}


def alone_row(places: Places, kind: str) -> Figures:
    """One process, the whole model."""
    model = models.real_llama()
    return timed(in_turn(consolidated(model), pretrained(model), places.on(kind)))


def asynchronous_row(places: Places, kind: str) -> Figures:
    """The time until the asynchronous call returns, beside that of the whole synchronous save."""
    model = models.real_llama()

    def call(directory: Path) -> Any:
        return addons.save_consolidated(model, directory, asynchronous=True)

    def finish(pending: Any) -> None:
        pending.result()

    paired = in_turn(Contender(call, finish, tensors), consolidated(model), places.on(kind))
    return timed(paired)


def consolidated(model: Any, first: bool = True) -> Contender:
    """The reference's save. Every rank that has a part of the model runs it; the ``first`` flushes what is left."""

    def run(directory: Path) -> None:
        addons.save_consolidated(model, directory)
        if first:
            sync(directory)

    return Contender(run, look=tensors)


def pretrained(model: Any) -> Contender:
    """The save of transformers, in one process."""

    def run(directory: Path) -> None:
        model.save_pretrained(str(directory))
        sync(directory)

    return Contender(run, look=tensors)


ROWS = (
    *(
        Row(
            f"save_consolidated-{kind}",
            f"`save_consolidated`, 0.5 GB in bfloat16, 1 process, {words}",
            "`save_pretrained`",
            1.2,
            partial(alone_row, kind=kind),
        )
        for kind, words in KINDS.items()
    ),
    *(
        Row(
            f"save_consolidated-async-{kind}",
            f"`save_consolidated` asynchronously, until the call returns, {words}",
            "the synchronous save",
            0.5,
            partial(asynchronous_row, kind=kind),
        )
        for kind, words in KINDS.items()
    ),
)
