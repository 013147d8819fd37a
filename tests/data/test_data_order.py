"""The order of images: a pure function that shows each image once an epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segshift.data.order import indices, seed_of


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 9))
def test_each_epoch_is_a_permutation(seed: int, n: int, batch: int) -> None:
    steps = -(-3 * n // batch)
    seen = [i for step in range(steps) for i in indices(seed, step, n, batch)]
    assert all(sorted(seen[e * n : (e + 1) * n]) == list(range(n)) for e in range(3))


def test_pure_and_seeded() -> None:
    later = indices(3, 50, 100, 4)
    assert [indices(3, step, 100, 4) for step in range(51)][50] == later
    assert indices(4, 50, 100, 4) != later
    assert indices(3, 0, 100, 100) != indices(3, 1, 100, 100)


def test_stays_what_it_is() -> None:
    # A change here would change the order of every run that is resumed.
    assert seed_of(1, "target", 2) == 4239518310753449293
    assert indices(0, 0, 10, 12) == indices(0, 0, 10, 10) + indices(0, 1, 10, 10)[:2]


@pytest.mark.parametrize("bad", [(0, 0, 0, 1), (0, 0, 1, 0), (0, -1, 1, 1)])
def test_refuses_nonsense(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        indices(*bad)
