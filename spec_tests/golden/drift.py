# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests drift OLD NEW``: what a checkpoint's files become with another version of transformers."""

from __future__ import annotations

import argparse
import html
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from spec_tests.golden.changes import changes
from spec_tests.golden.command import cases_below
from spec_tests.golden.compare import difference
from spec_tests.golden.eras import era_of, eras_dir, read_era, read_eras
from spec_tests.golden.reading import READS, read_table
from spec_tests.golden.recorded import recorded
from spec_tests.harness.paths import golden_dir

Tree = dict[str, dict[str, bytes]]
"""Case -> relative path -> content in the recorded form."""
DOCUMENT = "DRIFT.md"
OWN = ("adapter_config.json", "adapter_model.safetensors.json", "automodel_peft_config.json")
"""Files of which the add-on decides everything but the names of modules."""


def main(arguments: Sequence[str]) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests drift",
        description="What changes in a checkpoint's files between two versions of transformers. OLD and NEW are "
        "versions, which stand for the era they lie in, or directories that `dump` has written.",
    )
    parser.add_argument("old", metavar="OLD", nargs="?")
    parser.add_argument("new", metavar="NEW", nargs="?")
    parser.add_argument("--all", action="store_true", help="every era and the one before it, as in fixtures/golden")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_const", const="md", dest="form", help="as Markdown (default)")
    form.add_argument("--json", action="store_const", const="json", dest="form", help="as JSON")
    form.add_argument("--html", action="store_const", const="html", dest="form", help="as one page of HTML")
    options = parser.parse_args(arguments)
    if options.all:
        print(document(), end="")
        return 0
    if options.new is None:
        parser.error("OLD and NEW are needed")
    try:
        old, new = tree(options.old), tree(options.new)
    except LookupError as error:
        parser.error(str(error.args[0]))
    found = drift(old, new)
    if options.form == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif options.form == "html":
        body = html.escape(report(options.old, options.new, found))
        print(f"<!doctype html><meta charset=utf-8><title>Drift</title><pre>{body}</pre>")
    else:
        print(report(options.old, options.new, found), end="")
    return 0


def document() -> str:
    """The report of every era and the one before it, as it is committed beside the goldens (`DOCUMENT`)."""
    parts = ["What each era of transformers changed in a checkpoint's files, from `python -m spec_tests drift --all`."]
    for old, new in itertools.pairwise(read_eras(eras_dir())):
        found = report(old.name, new.name, drift(read_era(eras_dir(), old), read_era(eras_dir(), new)))
        parts.append(f"{found.rstrip()}\n\nWhy it is an era: {new.why} First seen in {new.first}.")
    return "\n\n".join([*parts, read_table(golden_dir() / READS)])


def tree(name: str) -> Tree:
    """The files of an era, by a version that lies in it, or of a dumped directory.

    Raises:
        LookupError: it is neither.
    """
    if Path(name).is_dir():
        found = {case: recorded(Path(name, kind, case)) for kind, case in cases_below(Path(name))}
        if not found:
            raise LookupError(f"a directory must be one that `dump` has written, got {name}")
        return found
    eras = read_eras(eras_dir())
    try:
        known = [era for era in eras if era.name == name]
        era = known[0] if known else era_of(str(Version(name)), eras)
    except ValueError:
        names = ", ".join(one.name for one in eras)
        raise LookupError(f"OLD and NEW must be a version or a directory, got {name}; eras: {names}") from None
    return read_era(eras_dir(), era)


def drift(old: Tree, new: Tree) -> dict[str, dict[str, list[str]]]:
    """File name -> what has changed in it, a sentence each -> the cases in which it has.

    Files that are the same in all cases have no entry. The add-on's own files come first.
    """
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in sorted(old.keys() & new.keys()):
        before, now = _with_tensors_together(old[case]), _with_tensors_together(new[case])
        for name in sorted(before.keys() | now.keys()):
            for sentence in dict.fromkeys(_sentences(name, before.get(name), now.get(name))):
                found[name][sentence].append(case)
    order = sorted(found, key=lambda name: (name not in OWN, name))
    return {name: dict(sorted(found[name].items())) for name in order}


def _with_tensors_together(files: dict[str, bytes]) -> dict[str, bytes]:
    """The weights files of a model as one: which file a tensor lies in follows from the names and sizes."""
    found, tensors, metadata = {}, {}, None
    for name, content in files.items():
        if name.startswith("model") and name.endswith(".safetensors.json"):
            said = json.loads(content)
            metadata = said["metadata"]
            tensors.update(said["tensors"])
        elif not name.endswith(".safetensors.index.json"):
            found[name] = content
    if tensors:
        found["model.safetensors"] = json.dumps({"metadata": metadata, "tensors": tensors}).encode()
    return found


def report(old: str, new: str, found: dict[str, dict[str, list[str]]]) -> str:
    """The report as Markdown."""
    if not found:
        return f"# transformers {old} to {new}\n\nNo file of any checkpoint changes.\n"
    lines = [f"# transformers {old} to {new}", ""]
    for name, sentences in found.items():
        lines += [f"## {name}", ""]
        lines += [f"- {sentence} ({_count(cases)})" for sentence, cases in sentences.items()]
        lines.append("")
    return "\n".join(lines)


def _sentences(name: str, old: bytes | None, new: bytes | None) -> list[str]:
    if old == new:
        return []
    if old is None:
        return ["the file is new"]
    if new is None:
        return ["the file is not written any more"]
    if name == "model.safetensors":
        return [str(change) for change in changes(json.loads(old), json.loads(new))]
    found = difference(name, old, new)
    most = None if name.endswith(".json") else 12
    return found if most is None or len(found) <= most else [*found[:most], f"and {len(found) - most} lines more"]


def _count(cases: Sequence[str]) -> str:
    most = 4
    named = ", ".join(cases[:most])
    return named if len(cases) <= most else f"{named} and {len(cases) - most} more"
