# SPDX-License-Identifier: Apache-2.0
"""What the suite is made of besides its tests: small, typed, and tested itself in ``spec_tests/meta``."""
