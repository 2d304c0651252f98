"""Tiny models, adapters, tokenizers and training steps that the suite builds its subjects from."""
