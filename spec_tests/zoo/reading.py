# SPDX-License-Identifier: Apache-2.0
"""Read kept checkpoints in a process of its own, and perhaps with other versions than wrote them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import transformers

from spec_tests.zoo.verdict import close, distance
from spec_tests.zoo.wholes import GIVEN, read


def read_all(directory: Path) -> int:
    """Read what ``zoo --keep`` kept: ours has to answer as the live model did wherever the peer's does.

    Args:
        directory: as it was given to ``--keep``.
    """
    count: Counter[str] = Counter()
    for path in sorted(directory.glob(f"*/*/{GIVEN}")):
        outcome = _outcome(path)
        count[outcome.partition(":")[0]] += 1
        if not outcome.startswith(("equal", "not read")):
            print(f"{path.parent.parent.name}, {path.parent.name}: {outcome}", flush=True)
    print(f"transformers {transformers.__version__}: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    return int(count["wrong"] > 0 or not count)


def _outcome(path: Path) -> str:
    kept = torch.load(path)
    kind = getattr(transformers, kept["class"], None)
    if kind is None:
        return "not read: these versions do not have the class"
    theirs = read(path.parent / "theirs", kind, kept["given"])
    if theirs.answer is None or not close(distance(theirs.answer, kept["live"])):
        return "not read: save_pretrained's own is not read as it was"
    ours = read(path.parent / "ours", kind, kept["given"])
    if ours.answer is None:
        return f"wrong: cannot be loaded: {ours.text}"
    far = distance(ours.answer, kept["live"])
    return "equal" if close(far) else f"wrong: {far:.1e} off"
