"""Every test that takes `isa` runs once for each instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pullback import ops


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa()
    ops.set_isa(request.param)
    yield request.param
    ops.set_isa(before)
