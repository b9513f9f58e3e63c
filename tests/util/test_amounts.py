"""Large numbers as people read them."""

from __future__ import annotations

import pytest

from pullback._util.amounts import amount


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (999.6, "1 kB"),
        (17_080, "17.1 kB"),
        (999_400, "999 kB"),
        (999_900, "1 MB"),
        (55.8e9, "55.8 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_three_digits_and_a_prefix(value: float, said: str) -> None:
    assert amount(value, "B") == said
