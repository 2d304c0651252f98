"""META: automodel_peft_config.json (spec/metadata.md)."""

from __future__ import annotations

import enum
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.harness.export import error_of, save_metadata, snapshot, text_of
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
KEYS = st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True).map(lambda key: f"x_{key}")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


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
    error = error_of(lambda: save_metadata(impl, TREE.build(), directory, config_of(impl, odd_setting=value)))
    assert isinstance(error, (TypeError, ValueError)), error
    assert "odd_setting" in text_of(error)
    assert snapshot(directory) == {}


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
