# SPDX-License-Identifier: Apache-2.0
"""Saves that the system fails, interrupts or kills at every call, and what is left of the checkpoints."""
