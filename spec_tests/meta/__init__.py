# SPDX-License-Identifier: Apache-2.0
"""Tests of the suite itself; no part of the conformance run."""
