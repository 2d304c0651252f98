# SPDX-License-Identifier: Apache-2.0
"""The specification of the checkpoint add-ons, as runnable tests."""
