# SPDX-License-Identifier: Apache-2.0
"""Descriptions of local model folders with code: relative imports, near misses and links.

Which files a model needs follows from the description alone: no source text is parsed here.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from hypothesis import strategies as st

How = Literal["name", "module", "parenthesised", "later", "guarded"]
Place = Literal["here", "blob", "outside"]
LinkKind = Literal["inside", "outside", "outside_directory", "dangling", "itself", "loop", "up"]

# How a module can import another. "later": inside a function, so that two modules can import each other.
HOW: tuple[How, ...] = ("name", "module", "parenthesised", "later", "guarded")
# Links that nothing needs, by kind: their paths in the folder.
LINKS: dict[LinkKind, str] = {
    "inside": "link_inside.py",
    "outside": "link_outside.py",
    "outside_directory": "link_package",
    "dangling": "link_dangling.py",
    "itself": "link_itself.py",
    "loop": "link_loop",
    "up": "link_up",
}
SNAPSHOT = "models--tiny--remote/snapshots/0123456789abcdef"
_BLOBS = "models--tiny--remote/blobs"
_ELSEWHERE = "elsewhere"
_AUTOS = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")

# What lies in model folders and is no code of the model. The names hold no drawn ones: those start with "m_".
NEAR_MISSES: dict[str, bytes] = {
    "setup.py": b"raise SystemExit('run by mistake')\n",
    "tests/test_model.py": b"from ..modeling import nothing\n",
    "venv/lib/python3.11/site-packages/pkg/mod.py": b"x = 1\n",
    ".git/hooks/hook.py": b"x = 2\n",
    "__pycache__/stray.py": b"x = 3\n",
    "__pycache__/modeling.cpython-311.pyc": b"\x00\xa7",
    "consolidated/config.json": b"{}\n",
    "consolidated/modeling_old.py": b"old = True\n",
    "README.md": b"import: from .m_nothing import x\n",
    "model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    "notes.py.txt": b"not code\n",
    "SHOUTING.PY": b"x = 4\n",
    ".hidden.py": b"x = 5\n",
    "scripts.py/inside.txt": b"in a directory that is called like a module\n",
    "broken.py": b"def (\n",
    "latin.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
    "empty.py": b"",
}


@dataclass(frozen=True)
class Import:
    """One relative import: of the file with the path ``target``, said in the manner ``how``."""

    target: str
    how: How = "name"


@dataclass(frozen=True)
class Module:
    """One ``.py`` file of the model: its path, what it imports, and where its bytes really are.

    A "blob" is a link into ../../blobs, as the Hugging Face cache keeps files; "outside" one to another folder.
    """

    path: str
    imports: tuple[Import, ...] = ()
    place: Place = "here"

    @property
    def name(self) -> str:
        """The name of the constant that the module defines."""
        return PurePosixPath(self.path).with_suffix("").as_posix().replace("/", "_").upper()

    def source(self) -> bytes:
        """The file's text; no two files of a tree have the same."""
        lines = [f'"""Stands for {self.path}; the text "from .m_no_module import x" is no import."""', ""]
        now = [one for one in self.imports if one.how != "later"]
        for one in now:
            lines += _statement(self.path, one)
        lines += [f"{self.name} = {self.path!r}", "", "", "def later():", '    """Import the rest."""']
        for one in self.imports:
            if one.how == "later":
                lines += [f"    {line}" for line in _statement(self.path, one)]
        return ("\n".join(lines) + "\n").encode()


@dataclass(frozen=True)
class CodeTree:
    """A model folder.

    Attributes:
        modules: the model's code.
        entries: auto class -> path of a module in the folder itself, as config.json's ``auto_map`` names it.
        others: which of `NEAR_MISSES` are there.
        links: which of `LINKS` are there.
    """

    modules: tuple[Module, ...]
    entries: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    links: tuple[LinkKind, ...] = ()

    def build(self, directory: Path) -> Path:
        """Create the folder below ``directory``, with what its links point to beside it; returns the folder."""
        folder = directory / SNAPSHOT
        for module in self.modules:
            _put(directory, module.path, module.source(), module.place)
        for path in self.others:
            _put(directory, path, NEAR_MISSES[path])
        _put(directory, "config.json", (json.dumps({"auto_map": self.auto_map()}) + "\n").encode())
        for kind in self.links:
            _link(directory, kind, inside=self.modules[0].path)
        return folder

    def auto_map(self) -> dict[str, Any]:
        """The ``auto_map`` of config.json; that of a tokenizer is a list of two, as transformers writes it."""
        named = {auto: f"{PurePosixPath(path).stem}.{auto.removeprefix('Auto')}" for auto, path in self.entries}
        return {auto: [None, name] if auto == "AutoTokenizer" else name for auto, name in named.items()}

    def needed_by_auto_map(self) -> list[str]:
        """Paths of the files that auto_map reaches: entries, what they import, and the packages on the way."""
        modules = {module.path: module for module in self.modules}
        todo, found = [path for _, path in self.entries], set()
        while todo:
            path = todo.pop()
            if path not in found:
                found.add(path)
                todo += [package for package in _packages(path) if package in modules]
                todo += [one.target for one in modules[path].imports]
        return sorted(found)

    def contents(self) -> dict[str, bytes]:
        """Path -> bytes of the model's code, whether or not it is needed."""
        return {module.path: module.source() for module in self.modules}


@st.composite
def code_trees(
    draw: st.DrawFn,
    others: st.SearchStrategy[str] | None = None,
    links: st.SearchStrategy[LinkKind] | None = None,
    places: st.SearchStrategy[Place] | None = None,
) -> CodeTree:
    """Folders with up to eight modules at most two packages deep, of which auto_map names one to three.

    ``others`` draws paths of `NEAR_MISSES`, ``links`` kinds of links, ``places`` where a module's bytes are.
    """
    others = st.sampled_from(sorted(NEAR_MISSES)) if others is None else others
    links = st.sampled_from(sorted(LINKS)) if links is None else links
    places = st.sampled_from(["here", "here", "here", "blob", "outside"]) if places is None else places
    paths = draw(_paths())
    modules = tuple(Module(path, draw(_imports(paths, path)), draw(places)) for path in paths)
    in_folder = st.sampled_from([path for path in paths if "/" not in path])
    autos = draw(st.lists(st.sampled_from(_AUTOS), min_size=1, max_size=3, unique=True))
    return CodeTree(
        modules,
        entries=tuple((auto, draw(in_folder)) for auto in sorted(autos)),
        others=tuple(draw(st.lists(others, max_size=5, unique=True))),
        links=tuple(draw(st.lists(links, max_size=3, unique=True))),
    )


@st.composite
def _paths(draw: st.DrawFn) -> list[str]:
    """Distinct paths of modules, the first in the folder itself; packages may have an ``__init__.py``."""
    words = st.from_regex(r"m_[a-z0-9]{1,5}", fullmatch=True)
    packages = draw(st.lists(st.lists(words, min_size=1, max_size=2).map(tuple), max_size=2, unique=True))
    places = st.sampled_from([(), *packages])
    files = [((), draw(words)), *draw(st.lists(st.tuples(places, words), max_size=5))]
    files += [(package, "__init__") for package in packages if draw(st.booleans())]
    # A module and a package of one name cannot be told apart by an import.
    taken = {package[:depth] for package in packages for depth in (1, 2)}
    paths = ["/".join((*package, f"{word}.py")) for package, word in files if (*package, word) not in taken]
    first = paths[0] if paths and "/" not in paths[0] else "m_first_.py"
    return list(dict.fromkeys([first, *paths]))


def _imports(paths: list[str], path: str) -> st.SearchStrategy[tuple[Import, ...]]:
    """Up to three imports by ``path``: of modules behind it, or of any when that can wait until all are loaded."""
    behind = paths[paths.index(path) + 1 :]
    waiting = st.builds(Import, st.sampled_from([one for one in paths if one != path] or paths), st.just("later"))
    # Python runs a package's __init__ before its modules, wherever it stands in the order.
    if not behind or path.endswith("__init__.py"):
        drawn = waiting
    else:
        drawn = st.one_of(st.builds(Import, st.sampled_from(behind), st.sampled_from(HOW)), waiting)
    return st.lists(drawn, max_size=3 if len(paths) > 1 else 0, unique_by=lambda one: one.target).map(tuple)


def _statement(path: str, imported: Import) -> list[str]:
    """The lines with which the module at ``path`` imports another one of its folder."""
    here = PurePosixPath(path).parent.parts
    there = _dotted(imported.target)
    # The last part is never shared: it is what is imported.
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(here, there[:-1], strict=False))
    common = len(list(shared))
    dots = "." * (len(here) - common + 1)
    module, name = dots + ".".join(there[common:]), Module(imported.target).name
    if imported.how == "module":
        return [f"from {dots}{'.'.join(there[common:-1])} import {there[-1]}"]
    if imported.how == "parenthesised":
        return [f"from {module} import (", f"    {name},", ")"]
    if imported.how == "guarded":
        return ["try:", f"    from {module} import {name}", "except ImportError:", f"    {name} = None"]
    return [f"from {module} import {name}"]


def _dotted(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _packages(path: str) -> list[str]:
    """The ``__init__.py`` that Python runs before the module at ``path``, if they are there."""
    parents = PurePosixPath(path).parent.parts
    return ["/".join((*parents[:depth], "__init__.py")) for depth in range(1, len(parents) + 1)]


def _put(directory: Path, path: str, content: bytes, place: Place = "here") -> None:
    """Write ``content`` as the folder's file ``path``, itself or as a link to where it is."""
    in_folder = directory / SNAPSHOT / path
    written = {
        "here": in_folder,
        "blob": directory / _BLOBS / hashlib.sha256(content).hexdigest(),
        "outside": directory / _ELSEWHERE / path,
    }[place]
    for one in (in_folder, written):
        one.parent.mkdir(parents=True, exist_ok=True)
    written.write_bytes(content)
    if written != in_folder:
        in_folder.symlink_to(os.path.relpath(written, in_folder.parent))


def _link(directory: Path, kind: LinkKind, inside: str) -> None:
    folder, elsewhere = directory / SNAPSHOT, directory / _ELSEWHERE
    targets = {
        "inside": inside,
        "outside": os.path.relpath(elsewhere / "shared.py", folder),
        "outside_directory": os.path.relpath(elsewhere / "package", folder),
        "dangling": "nowhere.py",
        "itself": LINKS["itself"],
        "loop": ".",
        "up": "..",
    }
    if kind.startswith("outside"):
        shared = elsewhere / ("shared.py" if kind == "outside" else "package/shared.py")
        shared.parent.mkdir(parents=True, exist_ok=True)
        shared.write_bytes(b"shared = True\n")
    (folder / LINKS[kind]).symlink_to(targets[kind])
