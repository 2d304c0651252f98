# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests bench``: what the reference costs, always beside something that does the same work."""
