# SPDX-License-Identifier: Apache-2.0
"""Deliberately broken implementations, one fault each, and the clauses that have to catch them.

They are the test of the tests: a clause whose tests pass on its mutants says nothing. Each fault is one that
exporters have had or could have, mostly with files that look right.
"""
