"""Readers of checkpoints: each module runs one real reader, or models its rules and says so."""
