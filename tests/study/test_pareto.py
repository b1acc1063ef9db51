import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from study.pareto import non_dominated


def oracle(costs):
    """Straight from the definition, one pair at a time."""

    def comparable(row):
        return not any(value != value for value in row)

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    rows = costs.tolist()
    return [comparable(b) and not any(comparable(a) and dominates(a, b) for a in rows) for b in rows]


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda columns: arrays(
            np.float64,
            st.tuples(st.integers(0, 12), st.just(columns)),
            elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, np.inf, -np.inf, np.nan]),
        )
    )
)
def test_the_front_is_what_the_definition_says_with_ties_nan_and_infinities(costs):
    assert non_dominated(costs).tolist() == oracle(costs)


def test_equal_rows_are_all_kept():
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2)])
def test_a_cost_matrix_must_have_rows_and_objectives(shape):
    with pytest.raises(ValueError, match="costs must be"):
        non_dominated(np.zeros(shape))
