"""EXP: the tensors of experts (spec/experts.md)."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spec_tests.consumers.forms import installed_form
from spec_tests.harness.export import PREFIX, refusal, save_adapter, save_metadata
from spec_tests.strategies.experts import MoESpec, fused_change, moe_model, moes, without_lora
from spec_tests.strategies.trees import Leaf, TreeSpec

# hidden == 2 * inter and hidden == inter: no shape tells gate_up from its transpose, nor A from B.
SQUARE = MoESpec(hidden=16, inter=8, rank=2, experts=2)
CUBE = MoESpec(hidden=8, inter=8, rank=2, experts=2)


def exported(impl, directory, spec, adapter="qwen3_moe", **save):
    model = moe_model(impl, spec, adapter)
    config = impl.peft_config(dim=spec.rank, alpha=2 * spec.rank)
    return model, save_adapter(impl, model, directory, config, **save)


def close(first, second):
    return torch.allclose(first, second, atol=1e-5, rtol=0)


@pytest.mark.clause("EXP-001")
@given(spec=moes())
def test_every_expert_has_its_own_pairs(impl, fresh_dir, spec):
    _, written = exported(impl, fresh_dir(), spec, v4_compatible=True)
    sizes = {"gate_proj": (spec.hidden, spec.inter), "up_proj": (spec.hidden, spec.inter)}
    sizes["down_proj"] = (spec.inter, spec.hidden)
    expected = {}
    for module in spec.expected_modules():
        size_in, size_out = sizes[module.rpartition(".")[2]]
        expected[f"{PREFIX}{module}.lora_A.weight"] = (spec.rank, size_in)
        expected[f"{PREFIX}{module}.lora_B.weight"] = (size_out, spec.rank)
    assert {key: tuple(tensor.shape) for key, tensor in written.tensors.items()} == expected


@pytest.mark.clause("EXP-002")
@given(spec=moes(), adapter=st.sampled_from(["qwen3_moe", "moe"]))
@example(spec=SQUARE, adapter="qwen3_moe")
@example(spec=CUBE, adapter="moe")
def test_every_expert_changes_as_the_trainer_changes_it(impl, fresh_dir, spec, adapter):
    compare_every_expert(impl, fresh_dir, spec, adapter)


@pytest.mark.clause("EXP-006")
@given(spec=moes(gated=st.just(False)))
def test_every_expert_without_a_gate_changes_as_the_trainer_changes_it(impl, fresh_dir, spec):
    compare_every_expert(impl, fresh_dir, spec, "moe")


def compare_every_expert(impl, fresh_dir, spec, adapter):
    model, written = exported(impl, fresh_dir(), spec, adapter, v4_compatible=True)
    tensors = written.tensors
    for path in spec.paths():
        experts = model.get_submodule(path)
        for expert in range(spec.experts):
            for projection in spec.projections():
                key = f"{PREFIX}{path}.{expert}.{projection}"
                change = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
                assert close(change, spec.expected_change(experts, expert, projection)), key


@pytest.mark.clause("EXP-003")
@given(spec=moes())
def test_fused_pairs_are_nested_as_peft_wraps_them(impl, fresh_dir, spec):
    _, written = exported(impl, fresh_dir(), spec)
    size_in = {".base_layer": (spec.hidden, 2 * spec.inter), "": (spec.inter, spec.hidden)}
    expected = {}
    for path in spec.paths():
        for nested, (inputs, outputs) in size_in.items():
            expected[f"{PREFIX}{path}{nested}.lora_A.weight"] = (spec.experts * spec.rank, inputs)
            expected[f"{PREFIX}{path}{nested}.lora_B.weight"] = (outputs, spec.rank * spec.experts)
    assert {key: tuple(tensor.shape) for key, tensor in written.tensors.items()} == expected


@pytest.mark.clause("EXP-004")
@given(spec=moes())
@example(spec=SQUARE)
@example(spec=CUBE)
def test_fused_rows_and_columns_belong_to_their_experts(impl, fresh_dir, spec):
    model, written = exported(impl, fresh_dir(), spec)
    tensors = written.tensors
    for path in spec.paths():
        experts = model.get_submodule(path)
        for expert in range(spec.experts):
            for nested, projections in ((".base_layer", ["gate_proj", "up_proj"]), ("", ["down_proj"])):
                a, b = (tensors[f"{PREFIX}{path}{nested}.lora_{matrix}.weight"] for matrix in "AB")
                change = fused_change(a, b, spec.experts, spec.rank, expert)
                wanted = [spec.expected_change(experts, expert, projection) for projection in projections]
                assert close(change, torch.cat(wanted)), (path, expert, projections)


@pytest.mark.clause("EXP-009")
@given(spec=moes())
@example(spec=SQUARE)
def test_legacy_fused_pairs_have_the_other_roles(impl, fresh_dir, spec):
    model, written = exported(impl, fresh_dir(), spec, legacy_paramwrapper_layout=True)
    for path in spec.paths():
        experts = model.get_submodule(path)
        for nested, projections in ((".base_layer", ["gate_proj", "up_proj"]), ("", ["down_proj"])):
            a, b = (written.tensors[f"{PREFIX}{path}{nested}.lora_{matrix}.weight"] for matrix in "AB")
            for expert in range(spec.experts):
                change = fused_change(a, b, spec.experts, spec.rank, expert).T
                assert close(change, torch.cat([spec.expected_change(experts, expert, one) for one in projections]))


@pytest.mark.clause("ADP-030")
@pytest.mark.needs("save_adapter", "qwen3_moe_adapter")
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("form", [{}, {"legacy_paramwrapper_layout": True}, {"v4_compatible": True}], ids=str)
def test_experts_whose_updates_are_zero_are_warned_of(impl, fresh_dir, trained, form):
    model = moe_model(impl, SQUARE)
    for name, parameter in model.named_parameters():
        if name.endswith("_B") and not trained:
            parameter.data.zero_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        impl.save_adapter(model, fresh_dir(), impl.peft_config(dim=SQUARE.rank, alpha=SQUARE.rank), **form)
    assert bool([one for one in caught if "zero" in str(one.message)]) is not trained


@pytest.mark.clause("EXP-005")
@given(spec=moes(), trained=st.sampled_from(["gate_up", "down"]))
@example(spec=MoESpec(layers=(0,)), trained="gate_up")
def test_one_trained_projection_is_not_nested(impl, fresh_dir, spec, trained):
    model = moe_model(impl, spec)
    other = "gate_and_up" if trained == "down" else "down"
    for path in spec.paths():
        without_lora(model.get_submodule(path), other)
    config = impl.peft_config(dim=spec.rank, alpha=2 * spec.rank)
    written = save_adapter(impl, model, fresh_dir(), config)
    assert written.config["target_parameters"] == [f"mlp.experts.{trained}_proj"]
    assert written.modules == sorted(spec.paths())
    projections = ["down_proj"] if trained == "down" else ["gate_proj", "up_proj"]
    for path in spec.paths():
        a, b = (written.tensors[f"{PREFIX}{path}.lora_{matrix}.weight"] for matrix in "AB")
        for expert in range(spec.experts):
            change = fused_change(a, b, spec.experts, spec.rank, expert)
            wanted = [spec.expected_change(model.get_submodule(path), expert, one) for one in projections]
            assert close(change, torch.cat(wanted))


@pytest.mark.clause("EXP-007")
@pytest.mark.parametrize(
    "adapter", ["none", pytest.param("one that passes tensors on", marks=pytest.mark.needs("encoder_adapter"))]
)
def test_unconverted_experts_are_refused(impl, fresh_dir, adapter):
    directory = fresh_dir()
    spec = MoESpec(rank=4)
    model = spec.build()
    model.layers_beside = TreeSpec((Leaf("q"),)).build()
    if adapter != "none":
        model.state_dict_adapter = impl.adapters["encoder"]()
    refusal(lambda: save_metadata(impl, model, directory), directory, naming="mlp.experts", kinds=Exception)


@pytest.mark.clause("EXP-008")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_dtypes_are_kept(impl, fresh_dir, dtype, v4_compatible):
    _, written = exported(impl, fresh_dir(), MoESpec(dtype=dtype), v4_compatible=v4_compatible)
    assert {tensor.dtype for tensor in written.tensors.values()} == {dtype}


@pytest.mark.clause("EXP-008")
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_dense_lora_beside_experts_is_unchanged(impl, fresh_dir, v4_compatible):
    spec = MoESpec(rank=4)
    model = moe_model(impl, spec)
    dense = TreeSpec((Leaf("q_proj"),)).build().q_proj
    model.model.layers["0"].add_module("q_proj", dense)
    tensors = save_adapter(impl, model, fresh_dir(), v4_compatible=v4_compatible).tensors
    name = f"{PREFIX}model.layers.0.q_proj"
    assert torch.equal(tensors[f"{name}.lora_A.weight"], dense.lora_A.weight)
    assert torch.equal(tensors[f"{name}.lora_B.weight"], dense.lora_B.weight)


@pytest.mark.clause("EXP-004", "EXP-009")
def test_peft_itself_applies_the_fused_change(impl, fresh_dir):
    """PEFT's ParamWrapper on a module with a parameter of that name: its delta is the trainer's, per expert."""
    import peft

    spec = replace(SQUARE, layers=(0,), experts=3, rank=4)
    model, written = exported(impl, fresh_dir(), spec, **installed_form())
    holder = nn.Module()
    holder.mlp = nn.Module()
    holder.mlp.experts = nn.Module()
    holder.mlp.experts.gate_up_proj = nn.Parameter(torch.zeros(spec.experts, 2 * spec.inter, spec.hidden))
    holder.mlp.experts.down_proj = nn.Parameter(torch.zeros(spec.experts, spec.hidden, spec.inter))
    config = peft.LoraConfig(
        r=4, lora_alpha=4, target_parameters=written.config["target_parameters"], target_modules=[]
    )
    wrapped = peft.inject_adapter_in_model(config, holder)
    path = spec.paths()[0]
    inner, outer = wrapped.mlp.experts.base_layer, wrapped.mlp.experts
    for module, nested, projections in ((inner, ".base_layer", ["gate_proj", "up_proj"]), (outer, "", ["down_proj"])):
        for matrix in "AB":
            tensor = written.tensors[f"{PREFIX}{path}{nested}.lora_{matrix}.weight"]
            getattr(module, f"lora_{matrix}")["default"].weight.data.copy_(tensor)
        delta = module.get_delta_weight("default")
        for expert in range(spec.experts):
            experts = model.get_submodule(path)
            wanted = torch.cat([spec.expected_change(experts, expert, one) for one in projections])
            assert close(delta[expert], wanted)


@pytest.mark.clause("EXP-001")
@pytest.mark.needs("qwen3_moe_adapter")
def test_experts_of_rank_one_can_be_written(impl, fresh_dir):
    experts = f"{PREFIX}model.layers.0.mlp.experts"
    native = {
        f"{experts}.lora_gate_and_up_A": torch.ones(2, 8, 1),
        f"{experts}.lora_gate_and_up_B": torch.ones(2, 1, 12),
    }
    converted = impl.adapters["qwen3_moe"](None).to_hf(native, v4_compatible=True)
    save_file(converted, fresh_dir() / "adapter_model.safetensors")  # which refuses memory that two tensors share
    assert len(converted) == 2 * 2 * 2
