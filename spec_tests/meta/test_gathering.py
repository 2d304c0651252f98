# SPDX-License-Identifier: Apache-2.0
"""How the reference brings tensors to the ranks that write them: what travels, what is kept, what a failure does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from addons import gathering
from addons.gathering import Transfer, agreed_order, gathered
from addons.holdings import Held, Source, holdings
from addons.ranks import agree
from spec_tests.harness.export import text_of
from spec_tests.harness.memory import NO_MEMORY, Allocations
from spec_tests.harness.ranks import SOON, run_ranks, values

MEMBERS = [1, 2, 3]
"""Of four ranks: a rank's number in the group is another one than its own, and rank 0 takes no part."""
LAID = {
    "a rows": ((5, 4), 0),
    "b columns": ((2, 5), 1),
    "c few rows": ((1, 4), 0),
    "d vector": ((7,), 0),
    "e copies": ((3,), None),
    "f scalar": ((), None),
    "g on one rank": ((6, 4), None),
    "h nothing": ((0, 3), None),
    "i sum": ((2, 2), None),
    "j on one rank": ((2, 3), None),
    "k sum on one rank": ((2, 2), None),
}
"""Shape, and the dimension that is cut over the ranks."""
ONLY = {"g on one rank", "j on one rank", "k sum on one rank"}
"""Rank 1 has these, so that it says something else of what it holds than the others."""


def value(name):
    at = sorted(LAID).index(name)
    numbers = torch.arange(24 * at, 24 * at + torch.Size(LAID[name][0]).numel())  # bfloat16 has all of these
    return numbers.reshape(LAID[name][0]).float()


def held_by(rank, mesh, alone):
    """What this rank of the group has, in float32; the numbers of one tensor do not lie side by side."""
    found = {}
    for name, (_, cut) in LAID.items():
        if name == "i sum":
            found[name] = DTensor.from_local(value(name) if rank == 1 else torch.zeros(2, 2), mesh, [Partial()])
        elif cut is not None:
            found[name] = distribute_tensor(value(name), mesh, [Shard(cut)])
        elif name not in ONLY or rank == 1:
            found[name] = value(name)
    if rank == 1:
        found["k sum on one rank"] = DTensor.from_local(value("k sum on one rank"), alone, [Partial()])
    found.update({name: one.t().contiguous().t() for name, one in found.items() if name == "g on one rank"})
    return found


def prepared(rank):
    group, one = dist.new_group(MEMBERS), dist.new_group([2])
    if rank == 0:
        return None, {}, []
    alone = DeviceMesh.from_group(one, "cpu") if rank == 2 else None
    tensors = held_by(rank - 1, DeviceMesh.from_group(group, "cpu"), alone)
    said = agree(group, lambda: (None, holdings(tensors, group, torch.bfloat16)))[1]
    return group, tensors, agreed_order(group, said)


def dealt(order, shift):
    return [replace(one, writer=(at + shift) % len(MEMBERS)) for at, one in enumerate(order)]


WALKS = [(shift, in_place) for shift in range(len(MEMBERS)) for in_place in (False, True)]


def walk_every_way(rank, _world):
    """For each walk what this rank keeps, the sizes of what it sends, and of its spare room, and which messages come
    into that; and the groups asked."""
    group, tensors, order = prepared(rank)
    asked, sent, spares, spared = [], [], [], []
    send, receive, spare, device = gathering.send, gathering.receive, gathering._spare, gathering.group_device

    def into(group, room, sender):
        spared.append(room.untyped_storage().data_ptr() == spares[-1].data_ptr())
        receive(group, room, sender)

    gathering.receive = into
    gathering.send = lambda group, content, to: sent.append(content.numel()) or send(group, content, to)
    gathering._spare = lambda *given: spares.append(spare(*given)) or spares[-1]
    gathering.group_device = lambda group: asked.append(group) or device(group)
    found = []
    for shift, in_place in WALKS if group else ():
        kept = []
        sent.clear()
        spared.clear()

        def keep(name, tensor, start, kept=kept):
            kept.append((name, start, tensor.dtype, tensor.reshape(-1).tolist()))

        gathered(tensors, dealt(order, shift), group, keep, in_place)
        found.append((kept, list(sent), spares[-1].numel(), list(spared)))
    return found, [one is group for one in asked]


def expected(rank, shift, in_place):
    """As `walk_every_way` says it, by the pieces that torch cuts."""
    kept, sent, largest, spared, size = [], [], 0, [], torch.bfloat16.itemsize
    for at, (name, (_, cut)) in enumerate(LAID.items()):
        writer, whole = (at + shift) % len(MEMBERS), value(name)
        chunks, stays, senders = [whole], False, {}
        if name in ONLY or name in {"e copies", "f scalar"}:
            having = [1] if name in ONLY else [0, 2]
            senders = {} if writer in having else {having[0]: whole}
        elif cut is not None:
            chunks = list(whole.chunk(len(MEMBERS), cut))
            stays = in_place and cut == 0
            senders = {} if stays else {one: part for one, part in enumerate(chunks) if one != writer}
        sent += [senders[rank].numel() * size] if rank in senders else []
        # Only the pieces of columns do not lie together where they belong.
        spared += [cut == 1 for _ in senders if rank == writer]
        largest = max([largest, *(chunks[0].numel() * size for _ in senders)])
        if stays and rank < len(chunks):
            before = sum(part.numel() for part in chunks[:rank])
            kept.append((name, before * size, torch.bfloat16, chunks[rank].reshape(-1).tolist()))
        elif rank == writer and not stays:
            kept.append((name, 0, torch.bfloat16, whole.reshape(-1).tolist()))
    return kept, sent, largest, spared


def test_each_byte_travels_once_to_the_rank_that_writes_it():
    for rank, (found, asked) in zip(MEMBERS, values(run_ranks(4, walk_every_way, timeout=2 * SOON))[1:], strict=True):
        assert found == [expected(rank - 1, *walk) for walk in WALKS]
        assert asked
        assert all(asked)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


FAULTS = [(NO_MEMORY, {}), (NO_MEMORY, {}), ("KeyboardInterrupt", {"fail": interrupt})]
"""Of each rank of the group."""


def walked(tensors, order, group):
    """What the walk raises, and the names that this rank keeps."""
    kept = []
    try:
        gathered(tensors, order, group, lambda name, _tensor, _start: kept.append(name))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every error is looked at
        return text_of(error) or type(error).__name__, kept
    return "", kept


def fail_at_every_tensor(rank, _world):
    group, tensors, order = prepared(rank)
    if group is None:
        return None
    order = [one for one in dealt(order, 0) if one.name != "i sum"]  # torch sums, and its ranks wait for each other
    with Allocations() as counted:
        sound = walked(tensors, order, group)
    made = [None] * len(MEMBERS)
    dist.all_gather_object(made, counted.made, group)
    faults = []
    for failing, (text, how) in enumerate(FAULTS):
        own = failing == rank - 1
        for moment in range(made[failing]):
            with Allocations(moment if own else None, **how):
                said, kept = walked(tensors, order, group)
            complete = kept == sound[1][: len(kept)] if own else moment == 0 or kept == sound[1]
            if text not in said or not (own or f"rank {failing} of" in said) or not complete:
                faults.append((failing, moment, said, kept))
    return made, faults, sound, walked(tensors, order, group)


def test_failure_at_any_tensor_is_an_error_on_all_ranks_and_the_others_keep_theirs():
    for made, faults, sound, again in values(run_ranks(4, fail_at_every_tensor, timeout=2 * SOON))[1:]:
        assert min(made) > 5
        assert faults == []
        assert sound[0] == ""
        assert sound == again


WHOLE = Source(())
ONE, OTHER = (Held(torch.float32, (2, size), WHOLE) for size in (3, 4))


@pytest.mark.parametrize(
    ("contents", "pipeline", "sources"),
    [
        ([([0, 1, 2, 3], (("a", ONE),))], None, {"a": [(0, 1, 2, 3)]}),
        ([([0, 1, 2, 3], (("a", ONE),))], "1 and 3", {"a": [(1,), (3,)]}),
        ([([0, 2], (("a", ONE),)), ([1, 3], (("b", ONE),))], None, {"a": [(0, 2)], "b": [(1, 3)]}),
        ([([0, 1], (("a", ONE),)), ([2, 3], (("a", ONE), ("b", ONE)))], None, {"a": [(0, 1)], "b": [(2, 3)]}),
        ([([0, 1], (("a", ONE),)), ([2, 3], (("a", ONE), ("b", ONE)))], "1 and 3", {"a": [(1,), (3,)], "b": [(3,)]}),
        ([([0, 2], (("a", ONE),)), ([1, 3], (("b", ONE),))], "1 and 3", {"a": [(0,), (2,)], "b": [(1,), (3,)]}),
    ],
)
def test_each_rank_of_a_pipeline_group_is_a_source_of_its_own(monkeypatch, contents, pipeline, sources):
    ranks = {"5 to 8": [5, 6, 7, 8], "1 and 3": [6, 8], None: list(range(12))}
    monkeypatch.setattr(gathering, "group_ranks", ranks.__getitem__)
    found = agreed_order("5 to 8", contents, pipeline)
    assert [one.name for one in found] == sorted(sources)
    assert {one.name: [source.ranks for source in one.sources] for one in found} == sources


def test_tensors_of_one_name_and_two_shapes_are_refused(monkeypatch):
    monkeypatch.setattr(gathering, "group_ranks", lambda _group: [0, 1, 2])
    with pytest.raises(ValueError, match=r"'a' must be .* on rank 0 and .* on rank 2"):
        agreed_order(None, [([0, 1], (("a", ONE),)), ([2], (("a", OTHER),))])


def test_messages_are_on_the_device_of_their_group(monkeypatch):
    sent, places = [], {"accelerators": torch.device("meta"), None: torch.device("cpu")}
    monkeypatch.setattr(gathering, "group_device", places.__getitem__)
    monkeypatch.setattr(gathering, "send", lambda _group, content, _to: sent.append(content))
    elsewhere = Transfer("a", ONE, (Source((1,)),), writer=0)
    spare = gathering._spare("accelerators", [elsewhere], False)
    gathering._Walk(None, False, spare)._send(torch.zeros(2, 3), ONE.nbytes, 0)
    assert [(one.device.type, one.numel()) for one in (spare, *sent)] == [("meta", ONE.nbytes)] * 2


def test_one_process_needs_no_group_and_keeps_its_own_tensors():
    kept, live = [], {"a": torch.ones(2, 3)}
    order = agreed_order(None, [([0], holdings(live, None))])
    gathered(live, order, None, lambda *one: kept.append(one))
    ((name, tensor, start),) = kept
    assert (name, tensor.data_ptr(), start) == ("a", live["a"].data_ptr(), 0)
