# SPDX-License-Identifier: Apache-2.0
"""What ranks of the reference do together: whose value each gets, and what each hears when something fails."""

from __future__ import annotations

import torch
import torch.distributed as dist

from addons import ranks
from addons.ranks import PeerError, agree, attempt, everywhere, group_ranks, on_rank_zero, receive, send, share
from spec_tests.harness.ranks import SOON, run_ranks, values

MEMBERS = [1, 2, 3]
"""Of four ranks: a rank's number in the group is another one than its own, and rank 0 takes no part."""
CLOSED = "Connection closed by peer"


class NoTextError(Exception):
    """Its text cannot be made."""

    def __str__(self):
        raise LookupError


def pair(own, *, said):
    if said == "refused":
        raise ValueError(f"refused by {own}")
    if said == "heard":
        raise PeerError("of another group")
    if said == "unsaid":
        raise NoTextError
    return own, said


def closed(*_args, **_kwargs):
    raise RuntimeError(CLOSED)


def error_of(helper, *args, **kwargs):
    _, failure = attempt(helper, *args, **kwargs)
    return f"{type(failure).__name__}: {failure}"


def work_together(rank, _world):
    """What each helper gives this rank, and what it hears where a step fails, and where the connection does."""
    group, alone = dist.new_group(MEMBERS), dist.new_group(MEMBERS[:1])
    if rank == 0:
        return None
    asked, device = [], ranks.group_device
    ranks.group_device = lambda group: asked.append(group) or device(group)
    given = [
        everywhere(group, pair, rank, said="same"),
        on_rank_zero(group, pair, rank, said="same"),
        agree(group, pair, rank, said="same"),
        agree(group, pair, rank, said="other" if rank == 2 else "one"),
        share(group, rank, 1),
    ]
    refused = [
        error_of(helper, group, pair, rank, said="refused" if rank in refusing else "one")
        for helper, refusing in ((everywhere, {2}), (on_rank_zero, {1}), (on_rank_zero, {2, 3}), (agree, {2}))
    ]
    refused.append(error_of(everywhere, group, pair, rank, said="heard" if rank == 1 else "one"))
    _, unsaid = attempt(everywhere, group, pair, rank, said="unsaid" if rank == 1 else "one")
    refused.append(type(unsaid).__name__ if rank == 1 else f"{type(unsaid).__name__}: {unsaid}")
    content = torch.zeros(1, dtype=torch.uint8)
    dist.broadcast_object_list = dist.send = dist.recv = dist.gather_object = closed
    broken = [
        error_of(share, group, rank),
        error_of(send, group, content, 0),
        error_of(receive, group, content, 0),
        error_of(agree, group, pair, rank, said=str(rank)),
    ]
    dist.all_reduce = closed
    broken += [error_of(helper, group, pair, rank, said="same") for helper in (everywhere, on_rank_zero, agree)]
    # Where nobody else is, nothing is sent: no connection is missed.
    given.append(share(alone, rank) if rank == MEMBERS[0] else rank)
    return given, refused, broken, bool(asked) and all(one is group for one in asked)


def test_each_rank_gets_its_value_and_hears_who_failed_at_what():
    found = values(run_ranks(4, work_together, timeout=2 * SOON))[1:]
    for rank, (given, refused, broken, on_its_device) in zip(MEMBERS, found, strict=True):
        first = rank == MEMBERS[0]
        assert given == [
            (rank, "same"),
            (rank, "same") if first else None,
            (rank, [([0, 1, 2], "same")]),
            (rank, [([0, 2], "one"), ([1], "other")] if first else []),
            2,
            rank,
        ]
        own = {at: f"ValueError: refused by {at}" for at in MEMBERS}
        of_rank_two = own[2] if rank == 2 else f"PeerError: rank 1 of the process group failed: {own[2]}"
        of_rank_one = own[1] if rank == 1 else f"PeerError: rank 0 of the process group failed: {own[1]}"
        heard = "PeerError: of another group"
        heard = heard if rank == 1 else f"PeerError: rank 0 of the process group failed: {heard}"
        unsaid = "NoTextError" if rank == 1 else "PeerError: rank 0 of the process group failed: NoTextError"
        assert refused == [of_rank_two, of_rank_one, "NoneType: None", of_rank_two, heard, unsaid]
        assert on_its_device
        for text, doing in zip(broken, ["share", "send", "receive", *["pair"] * 4], strict=True):
            assert text.startswith("PeerError: all ranks [1, 2, 3] must stay"), text
            assert f"while in {doing}:" in text, text
            assert text.endswith(CLOSED), text


class Unsaid:
    def __repr__(self):
        raise AssertionError("nobody else is there to compare it with")


def test_one_process_compares_nothing():
    said = Unsaid()
    _, ((ranks, content),) = agree(None, pair, 0, said=said)
    assert ranks == [0]
    assert content is said


def list_ranks(_rank, _world):
    ranks_of = dist.get_process_group_ranks

    def of_a_group(group):
        if group is None:
            raise KeyError(group)  # as torch before 2.8 does
        return ranks_of(group)

    dist.get_process_group_ranks = of_a_group
    return group_ranks(None)


def test_default_group_has_its_ranks_in_any_torch():
    assert values(run_ranks(2, list_ranks, timeout=2 * SOON)) == [[0, 1], [0, 1]]
