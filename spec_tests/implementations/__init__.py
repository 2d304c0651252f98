# SPDX-License-Identifier: Apache-2.0
"""The implementations under test: what a binding provides, and how one is found by its name."""
