# SPDX-License-Identifier: Apache-2.0
"""LOAD for the families of transformers: a fixed sample of what ``python -m spec_tests zoo`` walks (spec/load.md)."""

from __future__ import annotations

import pytest

from spec_tests.zoo import adapters, wholes
from spec_tests.zoo.registry import families
from spec_tests.zoo.sample import ADAPTERS, WHOLES

RIGHT = ("equal", "as the peer", "refused", "not applicable")


def known(cases):
    return [pytest.param(*case, id=" ".join(case)) for case in cases if case[0] in families()]


@pytest.mark.clause("LOAD-010")
@pytest.mark.parametrize(("family", "mode"), known(ADAPTERS))
def test_adapter_of_a_family_answers_as_the_live_model(impl, fresh_dir, family, mode):
    verdict = adapters.judge(impl, family, adapters.MODES[mode], fresh_dir())
    assert verdict.outcome in RIGHT, verdict.detail


@pytest.mark.clause("LOAD-011")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize(("family", "case"), known(WHOLES))
def test_checkpoint_of_a_family_is_that_of_transformers(impl, fresh_dir, family, case):
    verdict = wholes.judge(impl, family, case, fresh_dir())
    assert verdict.outcome in RIGHT, verdict.detail
