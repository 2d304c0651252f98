# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests demo``: the whole way, from sharded training ranks to logits in somebody else's process.

Real gloo ranks, real FSDP2, real training steps, a real save; then real PEFT on a real transformers model in a
clean process. Every step prints a line; any disagreement ends the run with a non-zero exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spec_tests.implementations.base import Implementation

FAR = 0.1
"""The trained model's logits differ from the base's by more than this: else equal logits would prove nothing."""
NEAR = 1e-5
"""The reloaded model's logits differ from the trained one's by no more than this, in float32."""


class DisagreementError(Exception):
    """The checkpoint and the trained model do not agree."""


@dataclass(frozen=True)
class Case:
    """A trained model and the adapters to save of it, each a kind of `builders.catalogue`: the model is the first's."""

    title: str
    saves: Mapping[str, str]

    @property
    def kind(self) -> str:
        """The kind of the model."""
        return next(iter(self.saves.values()))


CASES = (
    Case("Llama with LoRA", {"llama": "llama"}),
    Case(
        "Qwen3-MoE with dense and expert LoRA",
        {"qwen3-moe-fused": "qwen3_moe_fused", "qwen3-moe-v4-compatible": "qwen3_moe_v4"},
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything agrees, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests demo", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="gloo ranks to train and save on (default 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the checkpoints in DIR")
    parser.add_argument("--impl", default="reference", help="the implementation whose save_adapter is run")
    options = parser.parse_args(argv)
    if options.ranks < 1:
        parser.error("--ranks: at least one")
    say("importing torch, transformers and peft")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from spec_tests.loading import load

    impl = load(options.impl)
    if impl.save_adapter is None:
        parser.error(f"--impl {options.impl}: has no save_adapter")
    with directory(options.out) as out:
        try:
            for case in CASES:
                run(case, impl, options.ranks, out)
            if impl.save_consolidated is not None:
                run_whole(impl, options.ranks, out)
        except DisagreementError as error:
            say(f"DISAGREEMENT: {error}")
            return 1
    say("everything that was reloaded agrees")
    return 0


def run(case: Case, impl: Implementation, ranks: int, out: Path) -> None:
    """Train, save and reload one case.

    Raises:
        DisagreementError: the message says about what.
    """
    from spec_tests.builders import hf
    from spec_tests.builders.catalogue import TRAINED

    say(f"== {case.title}")
    base = hf.save_base(TRAINED[case.kind].base(), out / f"{case.kind}-base")
    trained = values_of(ranks, train_and_save, impl, case, out)
    for name, kind in case.saves.items():
        if not TRAINED[kind].loads:
            say(f"not reloading {name}: the installed PEFT does not read this form of experts")
            continue
        compare(name, base, out / name, TRAINED[case.kind].inputs(), trained)


def train_and_save(rank: int, world: int, impl: Implementation, case: Case, out: Path) -> Any:
    """One rank: shard, train, move LoRA away from zero, save; returns the trained model's logits."""
    from torch.distributed.device_mesh import init_device_mesh

    from spec_tests.builders.catalogue import TRAINED
    from spec_tests.builders.lora import randomise_lora
    from spec_tests.builders.tokenizers import tokenizer
    from spec_tests.builders.training import logits, sample_input_ids, shard, train_steps
    from spec_tests.consumers.forms import installed_form

    spec = TRAINED[case.kind]
    model = shard(spec.build(impl.adapters), init_device_mesh("cpu", (world,)))
    losses = train_steps(model, steps=3)
    if rank == 0:
        say(f"trained on {world} ranks (FSDP2): loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    # After a few steps lora_B is nearly zero, and a wrong export of it would hardly show.
    randomise_lora(model, std=0.5)
    for name, kind in case.saves.items():
        config = spec.peft_config(impl.peft_config)
        keywords = {**TRAINED[kind].save, **(installed_form() if spec.experts else {})}
        impl.save_adapter(model, out / name, config, tokenizer=tokenizer(), **keywords)
        if rank == 0:
            say(f"saved {name}")
    return logits(model, sample_input_ids())


def compare(name: str, base: Path, adapter: Path, inputs: Any, trained: Any) -> None:
    """Reload in a clean process and compare files, modules and numbers.

    Raises:
        DisagreementError: as `run`.
    """
    import torch

    from spec_tests.consumers.peft import expected_modules, reload
    from spec_tests.harness.export import Adapter

    say(f"reloading {name} with PEFT in a clean process")
    list_files(adapter)
    read = reload(base, adapter, inputs)
    with_tensors = expected_modules(Adapter(adapter).modules)
    say(f"    modules: PEFT resolved {len(read.modules)}, {len(with_tensors)} have tensors")
    for module in sorted({*read.modules, *with_tensors}):
        resolved, stored = module in read.modules, module in with_tensors
        say(f"        {module}  {'resolved' if resolved else 'NOT RESOLVED'}, {'tensors' if stored else 'NO TENSORS'}")
    for found in (*read.complaints, *(f"no tensor for {key}" for key in read.missing)):
        raise DisagreementError(f"{name}: {found}")
    for key in read.ignored:
        raise DisagreementError(f"{name}: PEFT ignored {key}")
    if differing := sorted(set(read.modules) ^ set(with_tensors)):
        raise DisagreementError(f"{name}: resolved by PEFT or with tensors, but not both: {', '.join(differing)}")
    judge(name, trained, torch.tensor(read.base_logits), torch.tensor(read.logits))


def run_whole(impl: Implementation, ranks: int, out: Path) -> None:
    """Train every weight of a Llama, save it as a whole model, and load it with transformers in a clean process.

    Raises:
        DisagreementError: as `run`.
    """
    import torch

    from spec_tests.builders import hf
    from spec_tests.builders.families import text_inputs
    from spec_tests.builders.training import logits
    from spec_tests.consumers.transformers import reload

    say("== Llama, every weight trained")
    base = logits(hf.llama(), text_inputs()["input_ids"])
    directory = out / "llama-consolidated"
    trained = values_of(ranks, train_and_save_whole, impl, directory)
    say("reloading llama-consolidated with transformers in a clean process")
    list_files(directory)
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    for found in (*read.complaints, *(f"{key} missing or unexpected" for key in (*read.missing, *read.unexpected))):
        raise DisagreementError(f"llama-consolidated: {found}")
    say(f"    dtype {read.dtype}")
    judge("llama-consolidated", trained, base, torch.tensor(read.outputs))


def train_and_save_whole(rank: int, world: int, impl: Implementation, directory: Path) -> Any:
    """One rank: shard, train, save; returns the trained model's logits."""
    from torch.distributed.device_mesh import init_device_mesh

    from spec_tests.builders import hf
    from spec_tests.builders.families import text_inputs
    from spec_tests.builders.tokenizers import tokenizer
    from spec_tests.builders.training import logits, shard, train_steps

    model = shard(hf.llama(), init_device_mesh("cpu", (world,)))
    losses = train_steps(model, steps=3)
    if rank == 0:
        say(f"trained on {world} ranks (FSDP2): loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    impl.save_consolidated(model, directory, tokenizer=tokenizer())
    if rank == 0:
        say("saved llama-consolidated")
    return logits(model, text_inputs()["input_ids"])


def values_of(ranks: int, body: Any, *args: Any) -> Any:
    """Rank 0's value of ``body`` on so many ranks.

    Raises:
        DisagreementError: a rank failed.
    """
    from spec_tests.harness.ranks import run_ranks

    results = run_ranks(ranks, body, *args, timeout=300.0)
    for failed in (result for result in results if result.error_type):
        raise DisagreementError(f"rank {failed.rank}: {failed.error_type}: {failed.error}\n{failed.traceback or ''}")
    return results[0].value


def list_files(directory: Path) -> None:
    """Print the tree of a checkpoint."""
    for path in sorted(directory.rglob("*")):
        say(f"    {path.relative_to(directory)}  {path.stat().st_size} bytes")


def judge(name: str, trained: Any, base: Any, reloaded: Any) -> None:
    """Compare logits: trained and base first, since equality proves nothing where they are equal too.

    Raises:
        DisagreementError: training changed too little, or the reload something.
    """
    far, near = difference(trained, base), difference(trained, reloaded)
    if not far > FAR:
        raise DisagreementError(f"{name}: training changed the logits by {far:.2e} only, equality would prove nothing")
    say(f"    largest logit difference: trained vs base {far:.3f} (> {FAR}), reloaded vs trained {near:.1e}")
    if not near <= NEAR:
        raise DisagreementError(f"{name}: the reloaded logits differ from the trained model's by {near:.2e} (> {NEAR})")


def difference(first: Any, second: Any) -> float:
    """The largest absolute difference; infinite where one is no number."""
    largest = (first - second).abs().max()
    return float("inf") if largest.isnan() else float(largest)


@contextlib.contextmanager
def directory(kept: Path | None) -> Iterator[Path]:
    """``kept``, made if missing, or a temporary directory."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="demo-") as temporary:
            yield Path(temporary)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def say(line: str) -> None:
    """Print a progress line at once: ranks and parent share the terminal."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
