# SPDX-License-Identifier: Apache-2.0
"""Every model family of the installed transformers, built tiny on a CPU from its configuration class alone."""
