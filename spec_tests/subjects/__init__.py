# SPDX-License-Identifier: Apache-2.0
"""Bindings of exporters that others wrote, each run by its own interpreter: ``BINDING CASE RESULT``."""
