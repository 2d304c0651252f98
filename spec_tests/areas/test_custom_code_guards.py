# SPDX-License-Identifier: Apache-2.0
"""CODE: copied code that imports what newer transformers lacks (spec/custom_code.md)."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

import pytest

from spec_tests.consumers.code import import_files, lacking
from spec_tests.harness.export import save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

MASKS = "transformers.modeling_attn_mask_utils"
TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
# What `found` is where the symbol is missing; {use} is the expression that reads it.
REMOVED = {
    "transformers.generation.utils.NEED_SETUP_CACHE_CLASSES_MAPPING": ("{use}", "{}"),
    "transformers.utils.LossKwargs": ("{use}.__name__", "'TransformersKwargs'"),
    "transformers.utils.is_torch_fx_available": ("{use}()", "False"),
    "transformers.utils.import_utils.is_torch_fx_available": ("{use}()", "False"),
    "transformers.utils.is_tf_available": ("{use}()", "False"),
    "transformers.utils.import_utils.is_tf_available": ("{use}()", "False"),
    "transformers.utils.is_flax_available": ("{use}()", "False"),
    "transformers.utils.import_utils.is_flax_available": ("{use}()", "False"),
    "transformers.utils.is_safetensors_available": ("{use}()", "True"),
    "transformers.utils.import_utils.is_safetensors_available": ("{use}()", "True"),
    # Of a module that is missing as a whole: everywhere in these tests.
    f"{MASKS}.AttentionMaskConverter": ("{use}.__module__", f"'{MASKS}'"),
    f"{MASKS}._prepare_4d_attention_mask": ("{use}.__module__", f"'{MASKS}'"),
}
FORMS = {
    "one line": "from {module} import {name}\nfound = {name}\n",
    "among others": "from {module} import {other}, {name}, {other} as again\nfound = {name}\n",
    "parenthesised": "from {module} import (\n    {other},  # (\n    {name},\n)\n\nfound = {name}\n",
    "backslash": "from {module} \\\n    import {other}, \\\n    {name}\nfound = {name}\n",
    "spaces": "from   {module}\timport   {name}\nfound = {name}\n",
    "as": "from {module} import {name} as other\nfound = other\n",
    "try": "try:\n    from {module} import {name}\nfinally:\n    done = True\nfound = {name}\n",
    "try for a module": (
        "try:\n    from {module} import {name}\nexcept ModuleNotFoundError:\n    raise\nfound = {name}\n"
    ),
    "else": (
        "try:\n    import math\nexcept ImportError:\n    math = None\nelse:\n    from {module} import {name}\n"
        "found = {name}\n"
    ),
    "handler": "try:\n    import no_such\nexcept ImportError:\n    from {module} import {name}\nfound = {name}\n",
    "one-line if": "if True: from {module} import {name}\nfound = {name}\n",
    "function": "def get():\n    from {module} import {name}\n\n    return {name}\n\n\nfound = get()\n",
    "class": "class Held:\n    from {module} import {name}\n\n\nfound = Held.__dict__['{name}']\n",
    "module as": "import {module} as z\n\nfound = z.{name}\n",
    "module": "import {module}\n\nfound = {module}.{name}\n",
    "module of a package": "from {package} import {last} as z\n\nfound = z.{name}\n",
    "package as": "import transformers as tf\nimport {module}\n\nfound = tf.{below}.{name}\n",
    "by another import": "import {module} as z\nimport transformers.models\n\nfound = transformers.{below}.{name}\n",
    "semicolons": "import os; from {module} import {name}; found = {name}\n",
    "last line": "found = None\nfrom {module} import {name} as found",
    "head": (
        '"""Says: é."""\n\n# a remark\nfrom __future__ import annotations\n\n\ndef typed(x: not_there): ...\n\n\n'
        "from {module} import {name}\nfound = {name}\n"
    ),
    "head in one line": (
        '"""Says: e."""; from __future__ import annotations; from {module} import {name}; found = {name}\n'
    ),
    "long head": (
        '"""Says:\nfrom __future__ import division\n"""\nfrom __future__ import (\n    annotations,\n); '
        "from {module} import {name}\nfound = {name}\n"
    ),
    "decorator": "@(lambda made: made())\ndef found():\n    from {module} import {name}\n\n    return {name}\n",
    "remarks": "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n\nfrom {module} import {name}\nfound = {name}\n",
}
LATIN = "latin"
UNTOUCHED = {
    "string.py": "x = 'from {module} import {name}'\n",
    "remark.py": "# from {module} import {name}\n",
    "relative.py": "from .{module} import {name}\n",
    "other_module.py": "from another import {name}\nimport another as z\nz.{name}\n",
    "own.py": "import {module} as z\n\n{name} = 1\nprint({name}, x.z.{name})\n",
    "assigned.py": "import {module} as z\n\nz.{name} = 1\n",
    "like.py": "from {module} import {name}_2, my_{name}\n",
    "answered.py": "try:\n    from {module} import {name}\nexcept ImportError:\n    {name} = 7\n",
    "answered_too.py": "try:\n    from {module} import {name}\nexcept (KeyError, Exception):\n    {name} = 7\n",
    "answered_alone.py": "try:\n    from {module} import {name}\nexcept (ImportError,):\n    {name} = 7\n",
    "answered_beside.py": (
        "try:\n    from {module} import {name}\nexcept ImportError:\n    {name} = 7\nexcept OSError:\n    raise\n"
    ),
    "answered_all.py": "try:\n    import {module} as z\n    z.{name}\nexcept:\n    pass\n",
    "broken.py": "from {module} import {name}\ndef (\n",
    "null.py": "from {module} import {name}\n\0\n",
    "empty.py": "",
    "escapes.py": "x = '\\d'\n",
}
# What goes another way without the module, and what would import it for some other reason.
MISSING_MODULE = "try:\n    from {module} import {name}\nexcept ModuleNotFoundError:\n    {name} = 7\n"
USES_OF_THE_MODULE = {"own.py", "assigned.py", "like.py"}


def filled(text, symbol):
    module, _, name = symbol.rpartition(".")
    package, _, last = module.rpartition(".")
    below = module.partition(".")[2]
    other = "torch" if module == MASKS else "logging"
    values = {"module": module, "name": name, "package": package, "last": last, "below": below, "other": other}
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def copied(impl, directory, original):
    save_metadata(impl, TREE.build(), directory, original_model_path=str(original))
    return directory


def sources(symbol):
    """File name -> form, bytes: each form with both line endings, and beginning with a mark of the byte order."""
    found = {}
    for number, (form, text) in enumerate(FORMS.items()):
        if form == "try for a module" and symbol.startswith(MASKS):
            continue
        for ending in ("\n", "\r\n"):
            place = f"form_{number}{'_crlf' if ending != chr(10) else ''}"
            source = filled(text, symbol).replace("\n", ending).encode()
            found |= {f"{place}.py": (form, source), f"{place}_bom.py": (form, codecs.BOM_UTF8 + source)}
    latin = '# -*- coding: latin-1 -*-\n"""Says: é."""; from {module} import {name}\nfound = {name}\n'
    return {**found, "latin.py": (LATIN, filled(latin, symbol).encode("latin-1"))}


def imported(directory, names, present=None):
    return import_files([directory / name for name in names], list(REMOVED), present, [MASKS])


def is_missing(symbol):
    return symbol.startswith(MASKS) or bool(lacking([symbol]))


def written(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@dataclass(frozen=True)
class Copy:
    """A file that was copied: what it was, what it became, and its ``found`` and docstring once it was imported."""

    form: str
    source: bytes
    made: bytes
    found: str
    docstring: str | None


@pytest.fixture(scope="module")
def copies(impl, fresh_dir):
    """Symbol -> name -> `Copy`, of every form; all are imported by one process, each as if it were the first."""
    made = {}
    for symbol, (use, _) in REMOVED.items():
        # The check stands behind the model's own lines, in the line ending of the file.
        reading = f"\nfound = {use.format(use='found')}\n".encode()
        files = {
            name: (form, source + reading.replace(b"\n", b"\r\n" if b"\r\n" in source else b"\n"))
            for name, (form, source) in sources(symbol).items()
        }
        original = written(fresh_dir(), {name: source for name, (_, source) in files.items()})
        made[symbol] = files, copied(impl, fresh_dir(), original)
    seen = iter(imported(Path(), [directory / name for files, directory in made.values() for name in files]))
    return {
        symbol: {
            name: Copy(form, source, (directory / name).read_bytes(), *next(seen))
            for name, (form, source) in files.items()
        }
        for symbol, (files, directory) in made.items()
    }


def check_found(copies, symbol, form=None):
    found = {name: copy.found for name, copy in copies[symbol].items() if form in (None, copy.form)}
    assert found
    if is_missing(symbol):
        assert found == dict.fromkeys(found, REMOVED[symbol][1])
    assert not any("Error" in value for value in found.values()), found


@pytest.mark.clause("CODE-010")
@pytest.mark.parametrize("symbol", list(REMOVED))
def test_copied_file_imports_in_every_form(copies, symbol):
    check_found(copies, symbol)


@pytest.mark.clause("CODE-010")
@pytest.mark.parametrize("form", [*FORMS, LATIN])
def test_copied_file_of_this_form_imports(copies, form):
    # One symbol alone: a copier that knows it, and not the others, is told which forms it misses.
    check_found(copies, next(iter(REMOVED)), form)


@pytest.mark.clause("CODE-010")
def test_several_symbols_in_one_file_are_all_there(impl, fresh_dir):
    lines = [
        f"from {module} import {name} as n{at}"
        for at, (module, _, name) in enumerate(s.rpartition(".") for s in REMOVED)
    ]
    lines.append(f"found = len([{', '.join(f'n{at}' for at in range(len(REMOVED)))}])")
    # The second has no line ending that could be taken for a guard's.
    files = {"lines.py": ("\n".join(lines) + "\n").encode(), "one_line.py": "; ".join(lines).encode()}
    directory = copied(impl, fresh_dir(), written(fresh_dir(), files))
    assert imported(directory, files) == [(str(len(REMOVED)), None)] * 2


@pytest.mark.clause("CODE-010")
def test_symbol_that_is_there_stays_as_it_is(impl, fresh_dir):
    symbols = [symbol for symbol in REMOVED if is_missing(symbol)]
    files = {f"{symbol}.py": filled(FORMS["one line"], symbol).encode() for symbol in symbols}
    directory = copied(impl, fresh_dir(), written(fresh_dir(), files))
    seen = imported(directory, files, present="its own")
    assert {value for value, _ in seen} == {"'its own'"}


@pytest.mark.clause("CODE-010")
def test_single_file_is_guarded_too(impl, fresh_dir):
    symbol = next(iter(REMOVED))
    original = written(fresh_dir(), {"one.py": filled(FORMS["parenthesised"], symbol).encode(), "two.py": b""})
    directory = copied(impl, fresh_dir(), original / "one.py")
    assert imported(directory, ["one.py"])[0][0] == "{}"


@pytest.mark.clause("CODE-011")
@pytest.mark.parametrize("symbol", list(REMOVED))
def test_lines_docstring_and_endings_stay(copies, symbol):
    for name, copy in copies[symbol].items():
        made, source = copy.made, copy.source
        # Nothing is taken away: what was there is what is left of the copy without one insertion.
        kept = next(at for at in range(len(source) + 1) if at == len(source) or source[at] != made[at])
        assert made.endswith(source[kept:]), name
        assert made.count(b"\r\n") == (made.count(b"\n") if b"\r\n" in source else 0), name
    docstrings = {name: copy.docstring for name, copy in copies[symbol].items() if b"Says" in copy.source}
    assert docstrings
    assert all(doc and doc.startswith("Says:") for doc in docstrings.values()), docstrings


@pytest.mark.clause("CODE-011")
@pytest.mark.parametrize("symbol", list(REMOVED))
def test_copy_of_a_copy_is_the_same(impl, fresh_dir, symbol):
    files = {name: source for name, (_, source) in sources(symbol).items()}
    first = copied(impl, fresh_dir(), written(fresh_dir(), files))
    original = written(fresh_dir(), {name: (first / name).read_bytes() for name in files})
    second = copied(impl, fresh_dir(), original)
    assert all((second / name).read_bytes() == (first / name).read_bytes() for name in files)


@pytest.mark.clause("CODE-011")
@pytest.mark.parametrize("symbol", list(REMOVED))
@pytest.mark.filterwarnings("error")
def test_file_that_needs_nothing_is_copied_byte_for_byte(impl, fresh_dir, symbol):
    texts = UNTOUCHED
    if symbol.startswith(MASKS):
        texts = {name: text for name, text in texts.items() if name not in USES_OF_THE_MODULE}
        texts["answered_for_the_module.py"] = MISSING_MODULE
    files = {name: filled(text, symbol).encode() for name, text in texts.items()}
    files |= {f"crlf_{name}": content.replace(b"\n", b"\r\n") for name, content in files.items()}
    directory = copied(impl, fresh_dir(), written(fresh_dir(), files))
    assert {name: (directory / name).read_bytes() for name in files} == files
