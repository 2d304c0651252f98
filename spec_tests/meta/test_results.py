"""Recorded results, the comparison with them, and the table in the README."""

from __future__ import annotations

import json
import re

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.known_failures import read_known_failures
from spec_tests.harness.paths import fixtures_dir, package_dir
from spec_tests.harness.results import compared, condensed, overview, read_all, record
from spec_tests.results import RELEASES, main, table

KNOWN_FAILURES = package_dir() / "implementations" / "known_failures" / "nemo_automodel.toml"
PACKAGES = {"peft": "0.21.2", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"}


def report(name="reference", version="1.0.0", packages=PACKAGES, **outcomes):
    return {
        "implementation": {"name": name, "version": version, "origin": "here"},
        "spec_version": "1.0",
        "packages": packages,
        "seed": None,
        "clauses": {key.replace("_", "-"): {"outcome": value, "executed": 3} for key, value in outcomes.items()},
    }


def test_outcomes_and_versions_are_recorded(tmp_path):
    path = record(tmp_path, report(TGT_002="XFAIL", TGT_001="PASS"))
    assert path == tmp_path / "reference" / "1.0.0.json"
    assert json.loads(path.read_text()) == {
        "clauses": {"TGT-001": "PASS", "TGT-002": "XFAIL"},
        "implementation": {"name": "reference", "version": "1.0.0"},
        "packages": {"peft": "0.21.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "spec_version": "1.0",
    }


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "..", "a/b.py:OURS", ""])
def test_a_name_that_leads_elsewhere_is_not_recorded(tmp_path, name):
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match="cannot name a file"):
        record(tmp_path / "results", report(name=name, TGT_001="PASS"))
    with pytest.raises(ValueError, match="cannot name a file"):
        record(tmp_path / "results", report(version=name, TGT_001="PASS"))
    assert [path.name for path in tmp_path.rglob("*")] == ["results"]


@pytest.mark.parametrize("outcome", ["NOT-RUN", "FAIL", "STALE"])
def test_a_part_or_an_unexplained_failure_is_not_recorded(tmp_path, outcome):
    with pytest.raises(ValueError, match="TGT-002"):
        record(tmp_path, report(TGT_001="PASS", TGT_002=outcome))
    assert list(tmp_path.iterdir()) == []


def test_command_records_what_it_can_and_names_what_it_cannot(tmp_path, capsys):
    for name, outcome in [("good", "PASS"), ("bad", "FAIL")]:
        (tmp_path / f"{name}.json").write_text(json.dumps(report(name=name, TGT_001=outcome)), encoding="utf-8")
    reports = [str(tmp_path / f"{name}.json") for name in ("absent", "bad", "good")]
    assert main([*reports, "--results-dir", str(tmp_path / "results")]) == 1
    said = capsys.readouterr()
    assert [line.partition(": not recorded: ")[0] for line in said.err.splitlines()] == reports[:2]
    assert "| area | good 1.0.0 |" in said.out.splitlines()


def test_same_outcomes_compare_equal(tmp_path):
    record(tmp_path, report(TGT_001="PASS"))
    assert compared(tmp_path, report(TGT_001="PASS")) == ([], "recorded results: compared with reference/1.0.0.json")


@pytest.mark.parametrize("found", [{"TGT_001": "FAIL"}, {"TGT_001": "PASS", "TGT_002": "PASS"}, {"ADP_001": "PASS"}])
def test_other_outcomes_are_named(tmp_path, found):
    record(tmp_path, report(TGT_001="PASS"))
    differing, _ = compared(tmp_path, report(**found))
    assert differing
    assert all("reference/1.0.0.json" in line for line in differing)


def test_missing_results_are_named(tmp_path):
    differing, _ = compared(tmp_path, report(version="9.9", TGT_001="PASS"))
    assert "reference/9.9.json" in differing[0]


def test_part_of_a_run_is_not_compared(tmp_path):
    record(tmp_path, report(TGT_001="PASS"))
    differing, said = compared(tmp_path, report(TGT_001="FAIL", TGT_002="NOT-RUN"))
    assert differing == []
    assert "not compared" in said


def test_what_differs_under_other_versions_is_said_and_fails_nothing(tmp_path):
    record(tmp_path, report(TGT_001="PASS", TGT_002="PASS"))
    packages = {**PACKAGES, "transformers": "4.57.6"}
    differing, said = compared(tmp_path, report(TGT_001="FAIL", TGT_002="PASS", packages=packages))
    assert differing == []
    assert "1 clauses differ" in said
    assert "TGT-001 is recorded as PASS and is FAIL" in said


def test_table_counts_what_was_claimed():
    results = [
        condensed(report(TGT_001="PASS", TGT_002="XFAIL", ADP_001="NOT-CLAIMED")),
        condensed(report(name="other", TGT_001="PASS", ADP_001="PASS")),
    ]
    assert overview(results, {"TGT-001": "contract", "TGT-002": "contract", "ADP-001": "hardening"}).splitlines() == [
        "| area | reference 1.0.0 | other 1.0.0 |",
        "| --- | --- | --- |",
        "| ADP | - | 1 of 1 |",
        "| TGT | 1 of 2 | 1 of 1 |",
        "| **contract** | 1 of 2 | 1 of 1 |",
        "| **extension** | - | - |",
        "| **hardening** | - | 1 of 1 |",
    ]


def test_the_reference_is_recorded_as_it_is():
    (one,) = [r for r in read_all(fixtures_dir() / "results") if r["implementation"]["name"] == "reference"]
    assert one["clauses"].keys() == load_clauses().keys()
    assert set(one["clauses"].values()) <= {"PASS", "NOT-APPLICABLE"}


def recorded_releases():
    """The recorded results of NeMo AutoModel's releases, by version."""
    found = [one for one in read_all(fixtures_dir() / "results") if one["implementation"]["name"] == "nemo_automodel"]
    return {one["implementation"]["version"]: one for one in found}


def test_every_release_that_imports_is_recorded():
    assert list(recorded_releases()) == ["0.2.0", *RELEASES]
    assert {tuple(one["clauses"]) for one in recorded_releases().values()} == {tuple(load_clauses())}


@pytest.mark.parametrize("version", list(recorded_releases()))
def test_what_is_recorded_as_known_to_fail_is_what_is_listed(version):
    recorded = recorded_releases()[version]["clauses"]
    listed = {entry.clause for entry in read_known_failures(KNOWN_FAILURES) if entry.holds_for(version)}
    applicable = {clause for clause in listed if recorded[clause] != "NOT-APPLICABLE"}
    assert {clause for clause, outcome in recorded.items() if outcome == "XFAIL"} == applicable


@pytest.mark.parametrize("version", [version for version in recorded_releases() if Version(version) >= Version("0.4")])
def test_every_failure_of_the_contract_is_explained(version):
    told = (fixtures_dir() / "results" / "nemo_automodel" / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([A-Z, 0-9-]+) \| ([^|]+) \|", told, re.MULTILINE)
    explained = {
        name for ids, versions in table if SpecifierSet(versions).contains(version) for name in ids.split(", ")
    }
    recorded = recorded_releases()[version]["clauses"]
    failed = {clause for clause, outcome in recorded.items() if outcome == "XFAIL"}
    assert {clause for clause in failed if load_clauses()[clause].level == "contract"} == explained


def test_the_readme_has_the_table():
    readme = (package_dir().parent / "README.md").read_text(encoding="utf-8")
    assert table(fixtures_dir() / "results") in readme
