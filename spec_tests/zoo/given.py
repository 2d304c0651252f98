# SPDX-License-Identifier: Apache-2.0
"""What a model's forward can be called with, found from its signature and its configuration."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from spec_tests.zoo.arguments import INPUTS
from spec_tests.zoo.rules import HIDDEN

TEXT = ("input_ids", "attention_mask", "bbox")
IMAGE = ("pixel_values", "image_grid_thw", "grid_thw", "image_sizes", "spatial_shapes", "pixel_attention_mask",
         "mm_token_type_ids", "flattened_patches")  # fmt: skip
AUDIO = ("input_features", "input_values", "input_features_mask", "feature_attention_mask")
ALWAYS = ("decoder_input_ids",)
# What is given together, the most telling first.
GROUPS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (TEXT, IMAGE, AUDIO), (TEXT, IMAGE), (TEXT, IMAGE[:1]), (TEXT, AUDIO), (TEXT, AUDIO[:1]), (TEXT,), (),
)  # fmt: skip
LENGTH, GRID = 12, 4
# Ways to call that are tried with one choice of arguments, and placeholders that are put into a text at most.
MOST_WAYS, MOST_PLACEHOLDERS = 24, 200

_COUNTS = re.compile(r"tokens:?\D*(\d+)\D+features:?\D*(\d+)", re.DOTALL)


@dataclass
class Call:
    """One way to call a forward, and why it failed, if it did."""

    arguments: dict[str, Tensor]
    problem: str = ""

    def report(self, problem: Exception) -> str:
        """Remember why this way failed, and say it in short."""
        self.problem = f"{type(problem).__name__}: {problem}"
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.arguments.items())
        return f"({shapes}) {self.problem[:200]}"


def find(config: Any, *names: str) -> Any:
    """The first of these attributes that a configuration has, or one of those inside it, images and audio first."""
    for name in names:
        for part in _parts(config):
            value = getattr(part, name, None)
            if value is not None and value is not False:
                return value
    return None


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    inside = {name: part for name, part in vars(config).items() if isinstance(part, PretrainedConfig)}
    for name in sorted(inside, key=lambda name: ("text" in name, name)):
        yield from _parts(inside[name])


class Drawer:
    """Draws arguments for one model."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        """Read the signature of the model's forward; the seed is for all that is drawn."""
        self.model, self.config, self.seed = model, model.config, seed
        self.source = torch.Generator().manual_seed(seed)
        signature = inspect.signature(model.forward).parameters
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.names = {name for name, parameter in signature.items() if parameter.kind in kinds}
        self.required = {name for name in self.names if signature[name].default is inspect.Parameter.empty}
        self.main = model.main_input_name if isinstance(model.main_input_name, str) else model.main_input_name[0]

    def normal(self, *shape: int) -> Tensor:
        """Numbers around zero."""
        return torch.randn(shape, generator=self.source) * 0.5

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers, the upper bound excluded."""
        return torch.randint(low, max(high, low + 1), shape, generator=self.source)

    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        try:
            table = self.model.get_input_embeddings()
            return int(table.weight.shape[0])
        except (AttributeError, NotImplementedError, TypeError):
            return int(find(self.config, "vocab_size") or 40)

    def ids(self, length: int = LENGTH) -> Tensor:
        """Tokens of text, none of them special."""
        size = self.vocabulary()
        return self.whole(33 if size > 60 else min(3, size - 1), min(size, 60), 1, length)

    def text(self, counts: dict[str, int]) -> Tensor:
        """Tokens of text, with placeholders for images and sounds in the middle."""
        ids = self.ids()
        middle: list[int] = []
        for kind, count in counts.items():
            token = find(self.config, f"{kind}_token_id", f"{kind}_token_index")
            if token is not None and count:
                start = find(self.config, "vision_start_token_id") if kind == "image" else None
                middle += [start] if isinstance(start, int) else []
                middle += [int(token)] * count
        return torch.cat([ids[:, :4], torch.tensor([middle], dtype=torch.long), ids[:, 4:]], dim=1) if middle else ids

    def side(self) -> tuple[int, int]:
        """Height and width of an image."""
        size = find(self.config, "image_size", "img_size", "input_size", "resolution")
        if isinstance(size, dict):
            size = [size.get("height", 32), size.get("width", 32)]
        if isinstance(size, (list, tuple)):
            return (int(size[0]), int(size[-1]))
        return (int(size), int(size)) if isinstance(size, int) and size > 1 else (64, 64)

    def channels(self) -> int:
        """Channels of an image."""
        for name in ("num_channels", "in_channels", "in_chans", "num_input_channels"):
            for part in _parts(self.config):
                count = getattr(part, name, None)
                if isinstance(count, int) and 0 < count <= 16:
                    return count
        return 3

    def patch(self) -> tuple[int, int]:
        """Side and number of frames of a patch."""
        size = find(self.config, "patch_size") or 8
        frames = find(self.config, "temporal_patch_size", "patch_temporal") or 1
        return (int(size[-1] if isinstance(size, (list, tuple)) else size), int(frames))

    def images(self) -> list[Tensor]:
        """Images, in each form that a model may want."""
        channels, (height, width) = self.channels(), self.side()
        patch, frames = self.patch()
        flat = self.normal(GRID * GRID, channels * frames * patch * patch)
        if {"image_grid_thw", "grid_thw"} & self.names:
            square = flat.view(-1, channels, frames * patch, patch)
            return [flat, square, flat[None]] if frames == 1 else [flat]
        if "spatial_shapes" in self.names:
            return [flat[None]]
        plain = self.normal(1, channels, height, width)
        clip = find(self.config, "num_frames", "frames_per_clip") or 2
        double = self.normal(1, channels, 2 * height, 2 * width)
        several = self.normal(1, int(clip), channels, height, width)
        if find(self.config, "image_grid_pinpoints"):  # the image as a whole, and its two halves
            return [self.normal(1, 3, channels, height, width)]
        return [plain, several, plain[:, None], double, plain[:, None, None], flat[None], flat]

    def sounds(self) -> list[Tensor]:
        """Features of sound, in each form that a model may want."""
        mels = find(self.config, "num_mel_bins", "n_mels", "input_feat_per_channel", "feature_size", "input_dim",
                    "feature_projection_input_dim", "input_feat_size", "mel_bins") or 16  # fmt: skip
        long = 2 * int(find(self.config, "max_source_positions") or 32)
        up = self.normal(1, int(mels), long)
        return [up, up.transpose(1, 2).contiguous(), self.normal(1, 1, 64, int(mels)), self.normal(1, int(mels), 64)]

    def lengths(self) -> list[Tensor]:
        """Masks over features of sound, of the lengths that they may have."""
        lengths = dict.fromkeys(max(sound.shape[1:]) for sound in self.sounds())
        return [torch.ones(1, length, dtype=torch.long) for length in lengths]

    def waves(self) -> list[Tensor]:
        """Sounds as they are, in each form that a model may want."""
        wave = self.normal(1, 3200)
        mels = int(find(self.config, "num_mel_bins") or 16)
        return [wave, wave[:, None], self.normal(1, int(find(self.config, "max_length") or 64), mels)]

    def boxes(self) -> Tensor:
        """A box on the page for each token."""
        corner = self.whole(0, 20, 1, LENGTH, 2)
        return torch.cat([corner, corner + self.whole(1, 20, 1, LENGTH, 2)], dim=-1)

    def options(self, name: str, counts: dict[str, int]) -> list[Tensor]:
        """The values that an argument may have."""
        self.source.manual_seed(self.seed)
        makers: dict[str, Callable[[], list[Tensor]]] = {
            "input_ids": lambda: [self.text(counts)],
            "attention_mask": lambda: [torch.ones_like(self.text(counts))],
            "mm_token_type_ids": lambda: [torch.eq(self.text(counts), self.image_token()).long()],
            "bbox": lambda: [self.boxes()],
            "decoder_input_ids": lambda: [self.ids(8)],
            "pixel_values": self.images,
            "pixel_values_videos": self.images,
            "flattened_patches": lambda: [self.normal(1, 16, 2 + 3 * self.patch()[0] ** 2)],
            "hidden_states": self.images,
            "image_grid_thw": lambda: [torch.tensor([[1, GRID, GRID]])],
            "grid_thw": lambda: [torch.tensor([[1, GRID, GRID]])],
            "image_sizes": lambda: [torch.tensor([self.side()])],
            "spatial_shapes": lambda: [torch.tensor([[GRID, GRID]])],
            "pixel_attention_mask": lambda: [torch.ones(1, GRID * GRID, dtype=torch.long)],
            "input_features": self.sounds,
            "input_features_mask": self.lengths,
            "feature_attention_mask": self.lengths,
            "input_values": self.waves,
            "past_values": lambda: [self.series()],
        }
        maker = makers.get(name)
        return maker() if maker else []

    def image_token(self) -> int:
        """The token that stands for a part of an image; none where there is no such token."""
        token = find(self.config, "image_token_id")
        return -1 if token is None else int(token)

    def series(self) -> Tensor:
        """The past of a series of numbers."""
        length, channels = find(self.config, "context_length") or 64, find(self.config, "num_input_channels") or 1
        return self.normal(1, int(length), int(channels))

    def drawn(self, spec: Any) -> Tensor:
        """An argument as ``arguments`` describes it: a literal, or a kind and a shape such as "normal 1 3 32 32"."""
        if not isinstance(spec, str):
            return torch.tensor(spec)
        self.source.manual_seed(self.seed)
        kind, *shape = spec.split()
        sizes = [int(size) for size in shape]
        if kind.startswith("whole<"):
            return self.whole(1, int(kind[6:]), *sizes)
        makers: dict[str, Callable[..., Tensor]] = {
            "normal": self.normal,
            "ids": self.ids,
            "ones": lambda *shape: torch.ones(shape, dtype=torch.long),
            "true": lambda *shape: torch.ones(shape, dtype=torch.bool),
            "false": lambda *shape: torch.zeros(shape, dtype=torch.bool),
        }
        return makers[kind](*sizes)


def _choices(drawer: Drawer) -> list[set[str]]:
    """Which arguments to give, the richest choice first."""
    always = drawer.required | ({drawer.main} & drawer.names)
    always |= {name for name in ALWAYS if name in drawer.names}
    found: list[set[str]] = []
    for groups in GROUPS:
        names = {name for group in groups for name in group if name in drawer.names}
        if "spatial_shapes" not in names:
            names.discard("pixel_attention_mask")
        if "input_ids" not in names and "input_ids" not in always:
            names -= set(TEXT)
        for choice in (names | always, names | drawer.required):
            if choice and choice not in found:
                found.append(choice)
    return found


def calls(model: PreTrainedModel, seed: int) -> Iterator[Call]:
    """Ways to call the model's forward, the most telling first, until the caller is content with one."""
    drawer = Drawer(model, seed)
    special = INPUTS.get(model.config.model_type, {})
    for names in _choices(drawer):
        unknown = {name for name in drawer.required if not drawer.options(name, {}) and name not in special}
        if unknown:
            yield Call({}, problem=f"no rule for {sorted(unknown)}")
            continue
        wanted = sorted((names | set(special)) - {name for name, spec in special.items() if spec is None})
        counts: dict[str, int] = {}
        if "pixel_values" in names and "input_ids" in names:
            counts["image"] = 1
        if names & {"input_features", "input_values"} and "input_ids" in names:
            counts["audio"] = 1
        yield from _corrected(drawer, wanted, special, counts)


def _combined(drawer: Drawer, names: list[str], special: dict[str, Any], counts: dict[str, int]) -> list[Call]:
    """The calls with these arguments, for all values that they may have."""
    options = {
        name: [drawer.drawn(special[name])] if name in special else drawer.options(name, counts) for name in names
    }
    known = {name: values for name, values in options.items() if values}
    combinations = itertools.islice(itertools.product(*known.values()), MOST_WAYS)
    return [Call(dict(zip(known, values, strict=True))) for values in combinations]


def _corrected(drawer: Drawer, names: list[str], special: dict[str, Any], counts: dict[str, int]) -> Iterator[Call]:
    """Calls with these arguments; where the model says how many placeholders it wants, it is called so."""
    for number in range(len(_combined(drawer, names, special, counts))):
        tally = dict(counts)
        for _ in range(5):
            call = _combined(drawer, names, special, tally)[number]
            yield call
            told = _COUNTS.search(call.problem)
            if not told or not tally:
                break
            kind = "audio" if "udio" in call.problem and "audio" in tally else next(iter(tally))
            have, want = int(told[1]), int(told[2])
            want //= HIDDEN if want > 48 and want % HIDDEN == 0 else 1  # some count the numbers, not the features
            tally[kind] = max(1, want * tally[kind] // have) if have else want
            if tally[kind] > MOST_PLACEHOLDERS:
                break
