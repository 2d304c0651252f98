"""META: automodel_peft_config.json (spec/metadata.md)."""

from __future__ import annotations

import enum
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, cases, tagged
from spec_tests.builders.families import MODELS
from spec_tests.builders.injected import config_for
from spec_tests.harness.export import (
    WEIGHTS,
    WRONG_VALUE,
    error_of,
    refusal,
    save_adapter,
    save_metadata,
    text_of,
)
from spec_tests.strategies.experts import MoESpec, moe_model, moes, without_lora
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
KEYS = st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True).map(lambda key: f"x_{key}")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


# Beside them one with a gate: transformers 4 has no Nemotron-H.
NO_GATE = ["qwen3_moe_fused", *(kind for kind in ("nemotron_h",) if TRAINED[kind].family in MODELS)]


class Format(enum.Enum):
    """A setting as trainers declare them."""

    PLAIN = "unquantized"


def config_of(impl, **settings):
    return impl.peft_config(dim=4, alpha=8, **settings)


@pytest.mark.clause("META-001")
@given(settings=st.dictionaries(KEYS, PLAIN, max_size=4))
def test_every_setting_but_rank_and_alpha_is_stored(impl, fresh_dir, settings):
    config = config_of(impl, **settings)
    stored = save_metadata(impl, TREE.build(), fresh_dir(), config).metadata
    assert stored == {key: value for key, value in config.to_dict().items() if key not in ("dim", "alpha")}
    assert settings.items() <= stored.items()


@pytest.mark.clause("META-002")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
def test_dtype_is_stored_as_its_string(impl, fresh_dir, dtype):
    stored = save_metadata(impl, TREE.build(), fresh_dir(), config_of(impl, lora_dtype=dtype)).metadata
    assert stored["lora_dtype"] == f"torch.{str(dtype).rpartition('.')[2]}"


@pytest.mark.clause("META-003")
@given(alpha=st.integers(1, 99), settings=st.dictionaries(KEYS, PLAIN, max_size=4))
def test_both_files_give_the_config_back(impl, fresh_dir, alpha, settings):
    config = impl.peft_config(dim=4, alpha=alpha, **settings)
    written = save_metadata(impl, replace(TREE, alpha=alpha).build(), fresh_dir(), config)
    back = {**written.metadata, "dim": written.config["r"], "alpha": written.config["lora_alpha"]}
    assert back == config.to_dict()


@pytest.mark.clause("META-004")
@pytest.mark.parametrize(
    "value", [object(), {"deep": [1, object()]}, b"bytes", len, float("nan")], ids=lambda one: type(one).__name__
)
def test_value_without_a_json_form_is_refused_by_name(impl, fresh_dir, value):
    directory = fresh_dir()
    refusal(
        lambda: save_metadata(impl, TREE.build(), directory, config_of(impl, odd_setting=value)),
        directory,
        naming="odd_setting",
        kinds=WRONG_VALUE,
    )


@pytest.mark.clause("META-005")
@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"v_proj", "q_proj", "k_proj"}, ["k_proj", "q_proj", "v_proj"]),
        (frozenset({3, 1, 2}), [1, 2, 3]),
        (Path("some") / "where", "some/where"),
        (Format.PLAIN, "unquantized"),
        (("a", 1), ["a", 1]),
        ({"in": {"b", "a"}, "dtypes": [torch.int8]}, {"in": ["a", "b"], "dtypes": ["torch.int8"]}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_python_values_are_stored_in_their_plain_form(impl, fresh_dir, value, stored):
    written = save_metadata(impl, TREE.build(), fresh_dir(), config_of(impl, setting=value)).metadata
    assert written["setting"] == stored


@pytest.mark.clause("META-006")
@given(alpha=st.integers(1, 99), settings=st.dictionaries(KEYS, PLAIN, max_size=4))
def test_config_is_read_back(impl, fresh_dir, alpha, settings):
    config = impl.peft_config(dim=4, alpha=alpha, **settings)
    written = save_metadata(impl, replace(TREE, alpha=alpha).build(), fresh_dir(), config)
    assert impl.helpers["load_automodel_peft_config_dict"](str(written.directory)) == config.to_dict()


@pytest.mark.clause("META-006")
@pytest.mark.needs("peft_injected")
def test_config_of_peft_is_read_back(impl, fresh_dir):
    settings = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.25, target_modules=["q_proj", "v_proj"])
    live, config = hf.llama(), config_for(impl, settings)
    peft.inject_adapter_in_model(settings, live)
    written = save_metadata(impl, live, fresh_dir(), config)
    back = impl.helpers["load_automodel_peft_config_dict"](written.directory)
    assert back == json.loads(json.dumps(config.to_dict(), default=sorted))  # its sets are lists


def fused(impl, directory, spec=None, **save):
    spec = spec or MoESpec(rank=4)
    return save_adapter(impl, moe_model(impl, spec), directory, **save)


def restamp(directory, stamp):
    path = directory / "automodel_peft_config.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "paramwrapper_layout"}
    path.write_text(json.dumps(content if stamp is None else {**content, "paramwrapper_layout": stamp}))


@pytest.mark.clause("META-007")
@pytest.mark.parametrize(("legacy", "stamp"), [(False, "peft-0.19.1"), (True, "peft-0.18")])
def test_layout_of_fused_experts_is_stamped(impl, fresh_dir, legacy, stamp):
    written = fused(impl, fresh_dir(), legacy_paramwrapper_layout=legacy)
    assert written.metadata["paramwrapper_layout"] == stamp
    assert impl.helpers["paramwrapper_layout"](written.directory) == stamp


@pytest.mark.clause("META-007")
@pytest.mark.parametrize("legacy", [True, False])
def test_layout_of_others_is_not_stamped(impl, fresh_dir, legacy):
    # As read back from an earlier adapter that had fused experts.
    config = config_of(impl, paramwrapper_layout="peft-0.18")
    dense = save_adapter(impl, TREE.build(), fresh_dir(), config, legacy_paramwrapper_layout=legacy)
    one_by_one = fused(impl, fresh_dir(), v4_compatible=True, legacy_paramwrapper_layout=legacy)
    spec = TRAINED["qwen3_moe_dense_alone"]  # whose dense layers are listed as parameters
    beside = save_adapter(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config))
    assert beside.config["target_parameters"]
    for written in (dense, one_by_one, beside):
        assert "paramwrapper_layout" not in written.metadata
        assert impl.helpers["paramwrapper_layout"](written.directory) is None


@pytest.mark.clause("META-008")
@pytest.mark.needs("qwen3_moe_adapter")
@given(spec=moes(), legacy=st.booleans())
@example(spec=MoESpec(hidden=16, inter=8), legacy=True)
@example(spec=MoESpec(hidden=16, inter=8), legacy=False)
@example(spec=MoESpec(hidden=8, inter=8), legacy=True)
def test_layout_shows_in_the_shapes_of_gated_experts(impl, fresh_dir, spec, legacy):
    written = fused(impl, fresh_dir(), replace(spec, rank=4), legacy_paramwrapper_layout=legacy)
    restamp(written.directory, None)
    assert impl.helpers["paramwrapper_layout"](written.directory) == ("peft-0.18" if legacy else "peft-0.19.1")


@pytest.mark.clause("META-008")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", cases(NO_GATE))
def test_stamp_fits_the_shapes_of_experts_without_a_gate(impl, fresh_dir, kind, legacy):
    # Without a gate the shapes fit both layouts: the stamp alone tells.
    spec, directory = TRAINED[kind], fresh_dir()
    config = spec.peft_config(impl.peft_config)
    save_adapter(impl, spec.trained(impl.adapters), directory, config, legacy_paramwrapper_layout=legacy)
    assert impl.helpers["paramwrapper_layout"](directory) == ("peft-0.18" if legacy else "peft-0.19.1")


def one_projection(impl, directory):
    spec = MoESpec(rank=4)
    model = moe_model(impl, spec)
    for path in spec.paths():
        without_lora(model.get_submodule(path), "down")
    return save_adapter(impl, model, directory)


EXPERTS = pytest.mark.needs("qwen3_moe_adapter")


@pytest.mark.clause("META-008")
@pytest.mark.parametrize(
    ("save", "stamp"),
    [
        pytest.param(fused, "peft-0.18", marks=EXPERTS, id="contradicts the shapes"),
        pytest.param(fused, "peft-0.20", marks=EXPERTS, id="unknown"),
        pytest.param(fused, 19, marks=EXPERTS, id="no text"),
        pytest.param(one_projection, None, marks=EXPERTS, id="none, and the shapes do not tell"),
        pytest.param(lambda impl, at: save_adapter(impl, TREE.build(), at), "peft-0.18", id="without fused experts"),
    ],
)
def test_doubtful_layout_is_refused(impl, fresh_dir, save, stamp):
    written = save(impl, fresh_dir())
    restamp(written.directory, stamp)
    error = error_of(lambda: impl.helpers["paramwrapper_layout"](written.directory))
    assert isinstance(error, ValueError), error
    assert str(stamp) in text_of(error)


@pytest.mark.clause("META-008")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("name", ["mlp.moe", "base_layer.experts"])
def test_layout_is_that_of_experts_by_any_name(impl, fresh_dir, name):
    written = fused(impl, fresh_dir())
    path = written.directory / "adapter_config.json"
    assert "mlp.experts" in path.read_text()
    path.write_text(path.read_text().replace("mlp.experts", name))
    renamed = {key.replace(".mlp.experts.", f".{name}."): tensor for key, tensor in written.tensors.items()}
    save_file(renamed, written.directory / WEIGHTS)
    assert impl.helpers["paramwrapper_layout"](written.directory) == written.metadata["paramwrapper_layout"]


@pytest.mark.clause("META-008")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("kind", tagged("dense beside experts"))
def test_there_is_no_layout_without_fused_experts(impl, fresh_dir, kind):
    spec, directory = TRAINED[kind], fresh_dir()
    model = spec.trained(impl.adapters)
    save_adapter(impl, model, directory, spec.peft_config(impl.peft_config), v4_compatible=True)
    assert impl.helpers["paramwrapper_layout"](directory) is None
