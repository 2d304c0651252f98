"""What the server process of `clean_process` imports before it forks."""

import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
