# SPDX-License-Identifier: Apache-2.0
"""Which model families the installed transformers has, and which classes each of them offers.

The answers come from the tables by which transformers' own auto classes find a model; no family is named here.
"""

from __future__ import annotations

from functools import cache

from transformers.models.auto import configuration_auto, modeling_auto

from spec_tests.zoo.overrides import MAIN

# Where a family offers several classes, the first task of this list that it offers is the one that is built. A task
# that this list does not know comes after these, before the rest that LAST names. A whole model comes before a part
# of it: an encoder with its decoder before the decoder alone, a model of images and text before that of text alone.
FIRST = (
    "IMAGE_TEXT_TO_TEXT",
    "VISION_2_SEQ",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "TEXT_TO_WAVEFORM",
    "CAUSAL_LM",
    "MULTIMODAL_LM",
    "CTC",
    "RNNT",
    "TDT",
    "TEXT_TO_SPECTROGRAM",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "INSTANCE_SEGMENTATION",
    "SEMANTIC_SEGMENTATION",
    "IMAGE_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "MASK_GENERATION",
    "TIME_SERIES_PREDICTION",
    "VISUAL_QUESTION_ANSWERING",
    "QUESTION_ANSWERING",
    "MULTIPLE_CHOICE",
)
LAST = ("MASKED_IMAGE_MODELING", "PRETRAINING", "", "TEXT_ENCODING", "IMAGE", "BACKBONE")

_PREFIX, _SUFFIX, _BARE = "MODEL_FOR_", "_MAPPING_NAMES", "MODEL_MAPPING_NAMES"


@cache
def _tables() -> dict[str, dict[str, str]]:
    """Task -> (family -> class name), for all registries of models; the bare model's task is the empty text."""
    tables: dict[str, dict[str, str]] = {}
    for name in sorted(vars(modeling_auto)):
        if name == _BARE:
            task = ""
        elif name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            task = name[len(_PREFIX) : -len(_SUFFIX)]
        else:
            continue
        # Where a registry lists several classes for a family, the auto class itself takes the first by default.
        tables[task] = {
            family: classes if isinstance(classes, str) else classes[0]
            for family, classes in getattr(modeling_auto, name).items()
        }
    return tables


@cache
def _families() -> tuple[str, ...]:
    """The same as ``families``, remembered."""
    found = {family for table in _tables().values() for family in table}
    return tuple(sorted(found & set(configuration_auto.CONFIG_MAPPING_NAMES)))


def families() -> list[str]:
    """The model types that have at least one model class in any registry, sorted."""
    return list(_families())


def architectures(family: str) -> dict[str, str]:
    """Task -> class name of one family, the usual choice first: {"CAUSAL_LM": "LlamaForCausalLM", "": "LlamaModel"}."""
    offered = {task: table[family] for task, table in _tables().items() if family in table}
    middle = sorted(task for task in offered if task not in FIRST and task not in LAST)
    return {task: offered[task] for task in (*FIRST, *middle, *LAST) if task in offered}


def main_architecture(family: str) -> str:
    """The name of the class that is built where nothing else is asked for."""
    if family in MAIN:
        return MAIN[family]
    offered = architectures(family)
    if not offered:
        raise KeyError(f"transformers has no model class for the family {family!r}")
    return next(iter(offered.values()))
