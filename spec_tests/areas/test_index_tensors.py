# SPDX-License-Identifier: Apache-2.0
"""IDX and LOAD: tensors of any dtype and shape come back bit for bit, or are refused by name (spec/index.md)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from spec_tests.builders.odd_tensors import (
    FLOAT8,
    FLOATS,
    INTEGERS,
    Tensor,
    cast,
    clip,
    described,
    holder,
    images,
    resnet,
)
from spec_tests.builders.training import sample_input_ids
from spec_tests.consumers.clean_process import in_clean_process
from spec_tests.consumers.complaints import complaints
from spec_tests.consumers.headers import weights_files
from spec_tests.harness.export import error_of, snapshot, text_of
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values
from spec_tests.strategies.tensors import file_sizes, states

# Of every dtype a matrix that two ranks share unevenly, and a tensor without a dimension; and the odd shapes.
EVERYTHING = [
    *(Tensor(dtype, (5, 3)) for dtype in (*FLOATS, *FLOAT8, *INTEGERS)),
    *(Tensor(dtype, (), "buffer") for dtype in (*FLOATS, *FLOAT8, *INTEGERS)),
    *(Tensor(torch.float32, shape) for shape in ((), (1,), (0,), (0, 4), (4, 0), (1, 1, 2))),
    *(Tensor(dtype, (3, 4), kind) for dtype in (torch.float32, torch.uint8) for kind in ("transposed", "slice")),
    Tensor(torch.int64, (0, 2), "buffer"),
]


def saved(directory):
    """Every tensor of the weights files as dtype, shape and bits."""
    return {name: described(one) for path in weights_files(directory) for name, one in load_file(path).items()}


def sharded(model, world):
    from torch.distributed.fsdp import fully_shard

    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        if Version(torch.__version__) < Version("2.13"):  # FSDP2 takes floats only there
            for name, one in list(model.named_parameters()):
                if not one.is_floating_point() and one.ndim and one.is_contiguous():
                    part = distribute_tensor(one.data, mesh, [Shard(0)], src_data_rank=None)
                    setattr(model, name, nn.Parameter(part, requires_grad=False))
        # FSDP2 refuses parameters without a dimension and those that are transposed: every rank keeps them whole.
        whole = {
            one for one in model.parameters() if one.ndim == 0 or not one.is_contiguous() or isinstance(one, DTensor)
        }
        fully_shard(model, mesh=mesh, ignored_params=whole)
    return model


def save_tensors(rank, world, impl, directory, tensors, save):
    impl.save_consolidated(sharded(holder(tensors), world), directory, **save)


def expected(tensors, dtype=None):
    return {name: described(cast(one, dtype)) for name, one in holder(tensors).state_dict().items()}


@pytest.mark.clause("IDX-012")
@given(tensors=states(), size=file_sizes())
@example(tensors=[Tensor(torch.float32, ())], size=1)
@example(tensors=[Tensor(torch.int64, ())], size=1)
@example(tensors=[Tensor(torch.float32, (0, 4))], size=1)
@example(tensors=[Tensor(torch.bool, (3,), "buffer")], size=1)
def test_tensors_of_any_kind_come_back_bit_for_bit(impl, fresh_dir, tensors, size):
    directory = fresh_dir() / "model"
    impl.save_consolidated(holder(tensors), directory, max_shard_bytes=size)
    assert saved(directory) == expected(tensors)


@pytest.mark.clause("IDX-012", "IDX-013")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world", [1, 2])
def test_shards_of_any_kind_come_back_bit_for_bit(impl, fresh_dir, world, dtype):
    directory = fresh_dir() / "model"
    save = {"dtype": dtype, "max_shard_bytes": 200}
    values(run_ranks(world, save_tensors, impl, directory, EVERYTHING, save, timeout=2 * SOON))
    assert saved(directory) == expected(EVERYTHING, dtype)


@pytest.mark.clause("IDX-013")
@given(tensors=states())
@example(tensors=[Tensor(torch.float32, (2, 3)), Tensor(torch.int64, ()), Tensor(torch.float32, ())])
@example(tensors=[Tensor(torch.float64, (2, 3)), Tensor(torch.float8_e4m3fn, (2, 3))])
def test_given_dtype_is_that_of_plain_floats_only(impl, fresh_dir, tensors):
    directory = fresh_dir() / "model"
    impl.save_consolidated(holder(tensors), directory, dtype=torch.float16)
    assert saved(directory) == expected(tensors, torch.float16)


REAL = {"clip": (clip, "CLIPModel"), "resnet": (resnet, "ResNetForImageClassification")}


def inputs_of(kind):
    pixels = {"pixel_values": images(seed=9)}
    return {"input_ids": sample_input_ids(), **pixels} if kind == "clip" else pixels


@torch.no_grad()
def computed(model, kind):
    found = model.eval()(**inputs_of(kind))
    return found.logits_per_image if kind == "clip" else found.logits


def loaded_by_transformers(parent):
    """What transformers makes of each checkpoint: tensors, outputs, keys that do not fit, complaints."""
    import transformers

    found = {}
    for kind, (_, class_name) in REAL.items():
        with complaints() as heard:
            model, info = getattr(transformers, class_name).from_pretrained(
                f"{parent}/{kind}", attn_implementation="eager", output_loading_info=True
            )
        odd = sorted(str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[name])
        tensors = {name: described(one) for name, one in model.state_dict().items()}
        found[kind] = tensors, computed(model, kind).tolist(), odd, heard
    return found


def save_real(rank, world, impl, parent):
    for kind, (build, _) in REAL.items():
        impl.save_consolidated(sharded(build(), world), parent / kind)


@pytest.mark.clause("LOAD-008")
@pytest.mark.parametrize("world", [1, 2])
def test_transformers_reads_scalars_and_counters(impl, fresh_dir, world):
    parent = fresh_dir()
    values(run_ranks(world, save_real, impl, parent, timeout=2 * SOON))
    for kind, (tensors, outputs, odd, heard) in in_clean_process(loaded_by_transformers, str(parent)).items():
        model = REAL[kind][0]()
        assert (odd, heard) == ([], []), kind
        assert tensors == {name: described(one) for name, one in model.state_dict().items()}
        assert (torch.tensor(outputs) - computed(model, kind)).abs().max() <= 1e-5, kind


def complex_model(dtype, how):
    model = nn.Module()
    model.plain, model.inner = nn.Linear(4, 4), nn.Module()
    numbers = torch.ones(3, dtype=dtype)
    if how == "buffer":
        model.inner.register_buffer("rotations", numbers)
    else:
        model.inner.rotations = nn.Parameter(numbers)
    model.config = holder([]).config
    return model


@pytest.mark.clause("IDX-014")
@pytest.mark.parametrize(
    ("dtype", "how", "save"),
    [
        (torch.complex64, "parameter", {}),
        (torch.complex64, "buffer", {"dtype": torch.bfloat16}),
        pytest.param(torch.complex64, "parameter", {"asynchronous": True}, marks=pytest.mark.needs("asynchronous")),
        (torch.complex128, "buffer", {}),
    ],
)
def test_complex_tensor_is_refused_by_name(impl, fresh_dir, dtype, how, save):
    parent = fresh_dir()
    impl.save_consolidated(complex_model(torch.float32, how), parent / "model")
    before = snapshot(parent)

    def save_and_wait():
        pending = impl.save_consolidated(complex_model(dtype, how), parent / "model", **save)
        if pending is not None:
            pending.result()

    error = error_of(save_and_wait)
    assert isinstance(error, (TypeError, ValueError)), error
    assert "inner.rotations" in text_of(error)
    assert snapshot(parent) == before


def save_complex_on_one_rank(rank, world, impl, directory, bad):
    model = complex_model(torch.complex64, "parameter") if rank == bad else nn.Linear(4, 4)
    impl.save_consolidated(model, directory)


@pytest.mark.clause("IDX-014", "RANK-007")
@pytest.mark.parametrize("bad", [0, 1])
def test_complex_tensor_of_one_rank_is_every_ranks_error(impl, fresh_dir, bad):
    parent = fresh_dir()
    results = run_ranks(2, save_complex_on_one_rank, impl, parent / "model", bad, timeout=2 * SOON)
    assert all_failed(results), results
    assert all("inner.rotations" in result.error for result in results)
    assert snapshot(parent) == {}


def save_what_one_rank_cannot_read(rank, world, impl, directory):
    model = nn.Linear(2, 2)
    if rank == 1:
        model.register_buffer("unread", torch.empty(3, device="meta"))
    impl.save_consolidated(model, directory)


@pytest.mark.clause("RANK-007")
@pytest.mark.needs("save_consolidated")
def test_tensor_without_values_on_one_rank_is_an_error_on_every_rank(impl, fresh_dir):
    parent = fresh_dir()
    results = run_ranks(2, save_what_one_rank_cannot_read, impl, parent / "model", timeout=2 * SOON)
    assert all_failed(results), results
    assert all("unread" in result.error for result in results)
    assert snapshot(parent) == {}
