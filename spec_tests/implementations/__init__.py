# SPDX-License-Identifier: Apache-2.0
"""The implementations under test: what a binding provides, and the bindings that the suite has."""
