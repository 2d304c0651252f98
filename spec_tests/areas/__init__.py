# SPDX-License-Identifier: Apache-2.0
"""The tests of the specification: `test_<file of spec/>[_<subject>].py`, so that a listing is a table of contents."""
