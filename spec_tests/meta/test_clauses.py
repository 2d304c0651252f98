# SPDX-License-Identifier: Apache-2.0
"""The parser of clauses, on good text and on each kind of malformed text."""

from __future__ import annotations

import pytest

from spec_tests.harness.clauses import Applies, Clause, SpecError, read_clauses, spec_version

HEADING = "# Target modules (TGT)\n\n"
CLAUSE = "- **TGT-004** (MUST, contract, since 1.0) One sentence.\n"
WHY = "  Because. Source (peft 0.21).\n"


def read(tmp_path, text, name="targets.md"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_clauses(tmp_path)


def test_clause_is_read_whole(tmp_path):
    text = (
        "- **TGT-004** (SHOULD, extension, since 1.2, needs process_group, applies transformers >=5,<6) One (o) `x`.\n"
        "  Because of this,\n"
        "  and of that.\n"
        "  Untestable: no hardware.\n"
    )
    assert read(tmp_path, HEADING + text) == {
        "TGT-004": Clause(
            id="TGT-004",
            area="TGT",
            keyword="SHOULD",
            level="extension",
            since="1.2",
            needs=("process_group",),
            applies=(Applies("transformers", ">=5,<6"),),
            text="One (o) `x`.",
            why="Because of this, and of that.",
            untestable="no hardware.",
            file="targets.md",
        )
    }


def test_prose_and_code_around_clauses_are_no_clauses(tmp_path):
    text = HEADING + f"Prose.\n\n```\n{CLAUSE}```\n\n{CLAUSE}{WHY}\n- a plain bullet\n"
    assert list(read(tmp_path, text)) == ["TGT-004"]


def test_clauses_of_all_files_are_sorted(tmp_path):
    read(tmp_path, "# Zed (ZED)\n" + (CLAUSE + WHY).replace("TGT", "ZED"), "a.md")
    (tmp_path / "README.md").write_text("# No area\n", encoding="utf-8")
    second = CLAUSE.replace("004", "002") + WHY
    assert list(read(tmp_path, HEADING + CLAUSE + WHY + second)) == ["TGT-002", "TGT-004", "ZED-004"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Target modules\n" + CLAUSE + WHY, "first heading"),
        (HEADING + CLAUSE.replace("TGT", "EXP") + WHY, "targets.md:3: EXP-004 stands in the file of area TGT"),
        (HEADING + CLAUSE.replace("MUST", "MAY") + WHY, "targets.md:3: unknown keyword 'MAY'"),
        (HEADING + CLAUSE.replace("contract", "core") + WHY, "targets.md:3: unknown level 'core'"),
        (HEADING + CLAUSE.replace(", since 1.0", "") + WHY, "targets.md:3: expected 'since X.Y'"),
        (HEADING + CLAUSE.replace("1.0", "1.0, wants x") + WHY, "targets.md:3: unknown item 'wants x'"),
        (HEADING + CLAUSE.replace("1.0", "1.0, applies peft new") + WHY, "targets.md:3: 'new' is no version"),
        (HEADING + CLAUSE.replace("-004", "-4") + WHY, "targets.md:3: not a clause"),
        (HEADING + CLAUSE.replace("**", "") + WHY, "targets.md:3: not a clause"),
        (HEADING + CLAUSE.replace(" One sentence.", "") + WHY, "targets.md:3: not a clause"),
        (HEADING + "- **bold** bullet\n", "targets.md:3: not a clause"),
        (HEADING + CLAUSE, "targets.md:3: TGT-004 does not say why"),
        (HEADING + CLAUSE + "\n" + WHY, "targets.md:3: TGT-004 does not say why"),
        (HEADING + CLAUSE + WHY + "  Untestable:\n", "targets.md:3: expected one 'Untestable: reason'"),
        (HEADING + (CLAUSE + WHY) * 2, "TGT-004 occurs twice"),
    ],
)
def test_malformed_text_is_refused_where_it_stands(tmp_path, text, message):
    with pytest.raises(SpecError) as error:
        read(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(("version", "met"), [("5.23.0", True), ("5.0.0rc1", False), ("4.57.6", False), (None, False)])
def test_condition_on_a_package_is_met_by_its_versions(version, met):
    assert Applies("transformers", ">=5").met_by(version) is met


def test_version_of_the_specification_is_that_of_the_newest_clause(tmp_path):
    older, newer = CLAUSE.replace("1.0", "1.9") + WHY, CLAUSE.replace("004", "005").replace("1.0", "1.10") + WHY
    assert spec_version(read(tmp_path, HEADING + older + newer)) == "1.10"
