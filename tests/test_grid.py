"""The comparison on a frozen lake: arms that differ in one term, and pairs at equal sampled tokens."""

import pytest
from benchmark_programs import benchmark

from jaxrl_llm import methods
from jaxrl_llm.training.config import check_config

with benchmark("grid") as grid:
    pass


def test_runs_of_a_pair_differ_in_the_step_level_term_alone():
    for regime in grid.REGIMES:
        one, other = (grid.configuration(arm, 1, regime) for arm in ("grpo", "gigpo"))
        check_config(one), check_config(other)
        one.method = other.method
        assert one.to_json() == other.to_json() and grid.setting(regime, "grpo") != grid.setting(regime, "gigpo")
    assert grid.setting("sea", "grpo") is None
    grpo, gigpo = (methods.get(arm, **options) for arm, options in grid.ARMS.items())
    assert grpo.objective == gigpo.objective and grpo.strategy.options == gigpo.strategy.options


def test_success_is_compared_over_the_tokens_that_both_have_sampled():
    row = {"regime": "ice", "seed": 0}
    rows = [
        row | {"method": "gigpo", "curve": [0.0, 1.0], "tokens": [0.0, 1000.0]},
        row | {"method": "grpo", "curve": [0.0, 1.0], "tokens": [0.0, 2000.0]},
    ]
    assert grid._until(rows[1], 1000.0) == pytest.approx((0.25, 0.5))
    assert "| ice | 1 | 1k | 0.500, 0.250 | +0.250 ± nan | 1.000, 0.500 | +0.500 ± nan |" in grid.table(rows)
