"""What the server process of `clean_process` imports before it forks."""

import os

# Read by huggingface_hub when it is imported, and never again.
os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

from spec_tests.harness.warm import warm

warm()
