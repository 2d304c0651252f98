# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of `addons`: each small edit that mutmut makes, judged by the tests that run the edited function."""
