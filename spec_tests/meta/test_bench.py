# SPDX-License-Identifier: Apache-2.0
"""The machinery of the bench: who runs when, what is compared, and what is said about it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from spec_tests.bench import command, machine, readme, report
from spec_tests.bench.pairing import Contender, Paired, Pairs, in_turn, ratio
from spec_tests.bench.rows import BenchError, Figures, NotHereError, Places, Row, timed
from spec_tests.bench.written import header, size, sync, tensors, writable
from spec_tests.harness.paths import package_dir


def figures(subject=1.0, peer=2.0, unit="s", **details):
    return Figures(subject, peer, (subject / peer,), subject / peer, unit, details)


def row(name="some-row", limit=1.0, enough=None, measure=lambda _: figures()):
    return Row(name, "some work", "its peer", limit, measure, enough)


@pytest.fixture
def where(tmp_path):
    return Places(tmp_path, None, lambda: pytest.fail("the peer is not needed"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the command sets goes away with the test."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def collections(monkeypatch):
    """Noted instead of run: of all that a test process holds one takes a second."""
    seen = []
    monkeypatch.setattr("gc.collect", lambda: seen.append("gc"))
    return seen


def test_contenders_run_in_turn_after_a_warm_up_each_in_a_new_directory(tmp_path, collections):
    seen = collections

    def contender(name):
        def run(directory):
            assert list(directory.iterdir()) == []
            (directory / "file").write_text("same", encoding="utf-8")
            seen.append(name)
            return name

        return Contender(run, lambda returned: seen.append(f"rest of {returned}"), lambda d: (d / "file").read_text())

    paired = in_turn(contender("a"), contender("b"), tmp_path, Pairs(least=2, most=2))
    assert seen == ["gc", "a", "rest of a", "gc", "b", "rest of b"] * 3
    assert (len(paired.subject), len(paired.peer)) == (2, 2)
    assert list(tmp_path.iterdir()) == []


def test_only_the_run_itself_is_timed(tmp_path):
    def slow(_):
        time.sleep(0.05)

    paired = in_turn(Contender(slow), Contender(lambda _: None, finish=slow, look=slow), tmp_path, Pairs(1, 1))
    assert paired.subject[0] >= 0.05 > paired.peer[0]


def test_contenders_that_write_different_things_are_not_compared(tmp_path):
    def contender(names):
        return Contender(lambda _: None, look=lambda _: dict.fromkeys(names, 1))

    with pytest.raises(BenchError, match="not do the same work: b: 1 instead of None"):
        in_turn(contender("ab"), contender("a"), tmp_path, Pairs(1, 1))


@pytest.mark.parametrize(
    ("done", "seconds", "enough"), [(2, 99.0, False), (3, 0.9, False), (3, 1.0, True), (9, 0.0, True)]
)
def test_pairs_run_until_there_are_enough_or_the_time_is_over(done, seconds, enough):
    assert Pairs(least=3, most=9, seconds=1.0).enough(done, seconds) is enough


def test_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians():
    paired = Paired([1.0, 2.0, 30.0], [1.0, 4.0, 10.0])
    assert (paired.ratios, paired.ratio, paired.medians) == ([1.0, 0.5, 3.0], 1.0, (2.0, 4.0))
    found = timed(paired, bytes=5)
    assert (found.subject, found.peer, found.ratio, found.details) == (2.0, 4.0, 1.0, {"bytes": 5})


def test_ratio_to_nothing():
    assert (ratio(0.0, 0.0), ratio(1.0, 0.0)) == (1.0, float("inf"))


@pytest.mark.parametrize(
    ("subject", "limit", "enough", "status"),
    [(1.0, 0.5, None, "ok"), (1.01, 0.5, None, "over"), (1.01, 0.5, 1.1, "ok"), (1.2, 0.5, 1.1, "over")],
)
def test_row_is_over_unless_ratio_or_amount_is_good_enough(subject, limit, enough, status):
    found = report.measured(row(limit=limit, enough=enough), figures(subject))
    assert found["status"] == status
    assert report.line(found).endswith("  over") is (status == "over")
    assert report.exit_code([found]) == (status == "over")


def test_rows_that_cannot_be_measured_leave_the_others(where, capsys):
    def absent(_):
        raise NotHereError("no tmpfs")

    def broken(_):
        raise ValueError("no such thing")

    rows = [row("absent", measure=absent), row("broken", measure=broken), row("good")]
    found = command.run(rows, where)
    assert [one["status"] for one in found] == ["not here", "failed", "ok"]
    assert report.exit_code(found) == 2
    assert report.exit_code([found[0], found[2]]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in said] == [
        "absent: not here: no tmpfs",
        "broken: failed: ValueError: no such thing",
        "good: 1.00 s beside 2.00 s, ratio 0.50 (limit 1)",
    ]
    assert report.summary(found).startswith("3 rows: 1 at or under their limit, 1 not measured here, 1 failed")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(2.5, "s", "2.50 s"), (0.0123, "s", "12.3 ms"), (4e-6, "s", "4.00 us"), (0, "s", "0"), (1234, "bytes", "1.23 kB")],
)
def test_amounts_have_three_digits(value, unit, text):
    assert report.amount(value, unit) == text


def test_rows_are_chosen_by_name_beginning_or_pattern():
    rows = command.all_rows()
    names = [one.name for one in rows]
    assert len(names) == len(set(names))
    assert [one.name for one in command.selected(rows, ["traffic"])] == ["traffic"]
    assert {"pre_save-experts-v4", "pre_save-dense"} <= {one.name for one in command.selected(rows, ["pre_save"])}
    assert [one.name for one in command.selected(rows, ["*4ranks-disk"])] == ["save_consolidated-4ranks-disk"]
    assert command.selected(rows, []) == rows


def test_list_runs_nothing_and_an_unknown_row_is_a_usage_error(capsys):
    assert command.main(["--list", "traffic"]) == 0
    assert capsys.readouterr().out.startswith("traffic: bytes that a rank other than 0 receives")
    with pytest.raises(SystemExit, match="2"):
        command.main(["no-such-row"])
    assert "got 'no-such-row'" in capsys.readouterr().err


def test_command_writes_the_result_without_a_path_of_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "all_rows", lambda: [row("quick", limit=0.1)])
    file, scratch = tmp_path / "result.json", tmp_path / "scratch"
    scratch.mkdir()
    assert command.main(["--json", str(file), "--scratch", str(scratch)]) == 1
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [one["name"] for one in found["rows"]] == ["quick"]
    assert {"cores", "filesystems", "versions"} <= found["machine"].keys()
    assert str(tmp_path) not in file.read_text(encoding="utf-8")
    assert list(scratch.iterdir()) == []
    capsys.readouterr()
    assert command.main(["--readme", str(file)]) == 0
    assert capsys.readouterr().out.strip() == readme.section(found)


def test_a_bench_that_is_terminated_leaves_nothing(tmp_path):
    seen = []

    def terminated():
        with command.places(tmp_path, tmp_path) as places:
            seen.append(places)
            (places.disk / "half").write_text("", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit, match="143"):
        terminated()
    assert list(tmp_path.iterdir()) == []
    assert seen[0].memory is None or not seen[0].memory.exists()


def test_no_tmpfs_is_said_by_the_row_that_needs_one(where):
    with pytest.raises(NotHereError, match="no tmpfs"):
        where.on("tmpfs")
    assert (where.on("disk"), where.fast) == (where.disk, where.disk)


def test_filesystem_of_a_path(tmp_path):
    if machine.filesystem(tmp_path) == "unknown":
        pytest.skip("this system does not say")
    assert machine.filesystem(machine.Path("/proc/self")) == "proc"


def test_what_was_written_is_read_back(tmp_path):
    from safetensors.torch import save_file

    whole = torch.arange(6.0).view(2, 3)
    ready = writable({"a": whole, "turned": whole.t(), "again": whole, "part": whole[1]}.items())
    assert ready["a"] is whole
    save_file(ready, tmp_path / "model.safetensors", metadata={"format": "pt"})
    sync(tmp_path)
    assert header(tmp_path / "model.safetensors")["turned"] == ("F32", [3, 2])
    assert sorted(tensors(tmp_path)) == ["a", "again", "part", "turned"]
    assert size(tmp_path) == (tmp_path / "model.safetensors").stat().st_size


# --- the README's section ---


def result():
    def memory(ranks, value):
        name = f"save_consolidated-memory-{ranks}"
        return report.measured(row(name), figures(value, 1e6, "bytes"))

    received = {"1": [0], "2": [40, 100], "4": [80, 100, 100, 90], "8": [160] + [100] * 7}
    traffic = report.measured(row("traffic"), figures(100.0, 100.0, "bytes", received=received, targets=6000))
    rows = [memory("1rank", 1e6), memory("2ranks", 1.1e6), traffic, report.measured(row("slow"), figures(4.0))]
    rows.append(report.unmeasured(row("absent", enough=0.005), report.NOT_HERE, "there is no tmpfs"))
    about = {"cores": 2, "gib": 24, "processor": "CPU", "system": "Linux x86_64"}
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    return {"machine": {**about, "filesystems": {"disk": "ext4", "tmpfs": "tmpfs"}, "versions": versions}, "rows": rows}


def test_section_says_on_what_it_was_measured():
    assert "2 cores (CPU, 24 GiB, Linux x86_64; disk is ext4) with python 3.11.7, torch 2.13.0" in readme.section(
        result()
    )


def test_table_has_a_line_a_row():
    lines = readme.table(result()["rows"]).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1
    assert lines[-2] == "| `slow` | some work | its peer | 4.00 s | 2.00 s | 2.00 **over** | 1 |"
    assert lines[-1] == "| `absent` | some work | its peer | - | - | not here: there is no tmpfs | 1, or 5.00 ms |"


def test_traffic_and_memory_are_extrapolated_from_what_was_counted():
    assert readme.at(1024, {2: 40, 4: 80, 8: 160}) == 20 * 1024
    lines = readme.extrapolated(result()).splitlines()
    assert "| rank 0 receives in `pre_save` | 40.0 B | 80.0 B | 160 B | 20.5 kB | 328 kB |" in lines
    assert "| every other rank receives | 100 B | 100 B | 100 B | 100 B | 100 B |" in lines
    # The peak at 2 ranks, 1.1 MB, and what a rank received.
    assert lines[-1].endswith("| 1.10 MB | 1.10 MB | 1.10 MB | 1.12 MB | 1.43 MB |")


def test_nothing_is_extrapolated_from_rows_that_were_not_measured():
    found = result()
    found["rows"] = [one for one in found["rows"] if one["name"] != "traffic"]
    assert readme.extrapolated(found) == ""
    assert readme.section(found).endswith(readme.END)


def test_readme_shows_the_committed_result():
    text = (package_dir().parent / "README.md").read_text(encoding="utf-8")
    expected = readme.section(readme.read(readme.committed()))
    assert expected in text, f"copy the output of {readme.BEGIN[14:-4]} into the README"
