# SPDX-License-Identifier: Apache-2.0
"""What ends a save in its middle: steps on the file system are counted, and tensors that are made."""

from __future__ import annotations

import pytest
import torch

from spec_tests.harness.kill import EXIT_CODE, Steps, can_exchange, die_at
from spec_tests.harness.memory import NO_MEMORY, Allocations
from spec_tests.meta.forks import in_a_fork


def work(directory):
    """Four steps: make, open to write, rename, remove; reading is none."""
    (directory / "made").mkdir()
    (directory / "one").write_text("1")
    (directory / "one").read_text()
    (directory / "one").rename(directory / "other")
    (directory / "other").unlink()


@pytest.mark.parametrize(
    ("moment", "left"), [(1, []), (2, ["made"]), (3, ["made", "one"]), (4, ["made", "other"]), (99, ["made"])]
)
def test_process_ends_at_its_step(tmp_path, moment, left):
    place = tmp_path / "place"
    place.mkdir()

    def run():
        die_at(moment)
        work(place)
        return 0

    assert in_a_fork(run, tmp_path / "output") == (0 if moment == 99 else EXIT_CODE)
    assert sorted(path.name for path in place.iterdir()) == left


def test_step_may_raise_instead_and_says_whether_it_came(tmp_path):
    def run():
        steps = Steps()
        steps.end_at(2, KeyError("now"))
        with pytest.raises(KeyError, match="now"):
            work(tmp_path)
        assert steps.stop()
        steps.end_at(9, KeyError("never"))
        (tmp_path / "three").touch()
        assert not steps.stop()
        return 0

    assert in_a_fork(run, tmp_path / "output") == 0


def test_directories_change_places_or_stay(tmp_path):
    assert isinstance(can_exchange(tmp_path), bool)
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_numbers_and_bytes_are_counted_and_views_are_not():
    with Allocations() as counted:
        one = torch.ones(2, 3)
        one.t()
        one.view(-1)
        one + 1
        torch.zeros(4, dtype=torch.uint8)
        torch.zeros(4, dtype=torch.int64)
        torch.empty(2, 2, device="meta")
        torch.empty(0)
    assert counted.made == 3


@pytest.mark.parametrize("failing", [0, 1])
def test_memory_runs_out_at_the_tensor_asked_for(failing):
    counted = Allocations(failing)
    with pytest.raises(torch.OutOfMemoryError, match=NO_MEMORY), counted:
        [torch.ones(1) for _ in range(3)]
    assert counted.made == failing + 1


def test_what_happens_then_may_be_chosen():
    came = []
    with Allocations(1, lambda: came.append("now")):
        torch.ones(1)
        assert came == []
        torch.ones(1)
        torch.ones(1)
    assert came == ["now"]
