"""What the server process of `clean_process` imports before it forks."""

import gc
import importlib

gc.disable()  # nothing of what is imported is garbage
for name in ("torch", "transformers", "peft"):
    importlib.import_module(name)
importlib.import_module("spec_tests.harness.warm").warm()
gc.freeze()  # nor need a fork look at it
gc.enable()
