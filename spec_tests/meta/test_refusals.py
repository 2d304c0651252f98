# SPDX-License-Identifier: Apache-2.0
"""What the tests of the specification ask of a save that fails: each of it can go wrong."""

from __future__ import annotations

import pytest

from spec_tests.harness.export import refusal
from spec_tests.harness.ranks import RankResult, all_failed


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "earlier").write_text("it was there before")
    return tmp_path


def failing(error, write=None):
    """A save that writes a file, if one is given, and raises."""

    def save():
        if write is not None:
            write.write_text("half a save")
        raise error

    return save


def test_refusal_is_the_error(directory):
    error = ValueError("dim is -1")
    assert refusal(failing(error), directory) is error
    assert refusal(failing(error), directory, naming="dim", kinds=ValueError) is error
    assert refusal(failing(error), directory, naming=["dim", "-1"]) is error


def test_name_may_stand_in_the_error_that_it_came_from(directory):
    def save():
        try:
            {}["model_path"]
        except KeyError as error:
            raise RuntimeError("the save failed") from error

    assert "the save failed" in str(refusal(save, directory, naming="model_path"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"naming": "alpha"}, "'alpha' is not named"),
        ({"naming": ["dim", "alpha"]}, "'alpha' is not named"),
        ({"kinds": (KeyError, TypeError)}, "refused with ValueError"),
    ],
)
def test_refusal_of_another_kind_is_none(directory, asked, said):
    with pytest.raises(AssertionError, match=said):
        refusal(failing(ValueError("dim is -1")), directory, **asked)


def test_os_error_is_no_refusal_unless_it_is_asked_for(directory):
    with pytest.raises(AssertionError, match="refused with OSError"):
        refusal(failing(OSError("the disk is full")), directory)
    assert refusal(failing(OSError("the disk is full")), directory, kinds=OSError)


@pytest.mark.parametrize("kinds", [ValueError, Exception])
def test_save_that_succeeds_is_no_refusal(directory, kinds):
    with pytest.raises(AssertionError, match="not refused"):
        refusal(lambda: None, directory, kinds=kinds)


@pytest.mark.parametrize("name", ["new", "earlier"])
def test_refusal_that_writes_is_none(directory, name):
    with pytest.raises(AssertionError, match=f"{name} has changed"):
        refusal(failing(ValueError("dim is -1"), directory / name), directory)


def test_directory_that_a_refusal_leaves_is_seen(tmp_path):
    with pytest.raises(AssertionError, match="made/ has changed"):
        refusal(lambda: (tmp_path / "made").mkdir() or int("x"), tmp_path)


@pytest.mark.parametrize(("kinds", "failed"), [(["KeyError"] * 2, True), (["KeyError", None], False)])
def test_ranks_that_all_failed(kinds, failed):
    assert all_failed(results(kinds)) is failed


def test_rank_that_waited_in_vain_has_not_failed_by_itself():
    assert not all_failed(results(["KeyError", "Timeout"]))


def results(kinds):
    """What ranks come to that end in errors of these kinds."""
    return [RankResult(rank, None, kind and "no", kind, 0.1, None) for rank, kind in enumerate(kinds)]
