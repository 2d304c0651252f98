"""What the server process of `clean_process` imports before it forks."""

import contextlib
import gc
import importlib

gc.disable()  # nothing of what is imported is garbage
for name in ("torch", "transformers", "peft"):
    # Who needs what cannot be imported imports it again, and says why.
    with contextlib.suppress(Exception):
        importlib.import_module(name)
with contextlib.suppress(Exception):
    importlib.import_module("spec_tests.harness.warm").warm()
gc.freeze()  # nor need a fork look at it
gc.enable()
