"""Methods whose strategy a configuration replaces."""

import pytest
from training.tiny_runs import finish, tiny_config

from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.methods_of import reinforcement_method


def with_strategy(name, method="gspo", **options):
    config = tiny_config(method)
    config.method.strategy = name
    config.method.strategy_options.update(**options)
    return config


def test_a_method_samples_by_another_strategy_with_rules_by_name():
    config = with_strategy("chosen", draws={"uncertainty": {"epsilon": 0.1}}, shares={"knapsack": {"most": 6}}, examples=50)
    check_config(config)
    method = reinforcement_method(config)
    assert repr(method.strategy) == "chosen(samples=4, examples=50, draws=uncertainty(epsilon=0.1), shares=knapsack(most=6))"
    replayed = reinforcement_method(with_strategy("replayed", rule="recent")).strategy.options
    assert (replayed["samples"], replayed["row_width"], replayed["components"]) == (4, 16, 1)


@pytest.mark.parametrize(
    ("name", "method", "options", "message"),
    [
        ("nothing", "grpo", {}, "config.method.strategy is 'nothing', which is no strategy"),
        ("joined", "grpo", {}, "config.method.strategy is 'joined', which is no strategy"),
        ("chosen", "grpo", {"draw": 1}, "config.method.strategy is 'chosen': chosen: unknown option 'draw'"),
        ("chosen", "grpo", {"draws": {"luck": {}}}, "there is no rule 'luck' in rollouts.choosing"),
        ("replayed", "grpo", {"rule": "worst"}, "replayed: rule is 'worst'; it must be one of"),
        ("grouped", "remax", {}, "does not provide 'greedy_reward', and 'remax' needs it"),
        ("", "grpo", {"samples": 4}, "config.method.strategy_options would change nothing"),
    ],
)
def test_impossible_strategies_are_refused(name, method, options, message):
    with pytest.raises(ValueError, match=message):
        check_config(with_strategy(name, method, **options))


def test_the_program_runs_it(tmp_path):
    done = finish(with_strategy("best_and_worst_of", "online_dpo", by="acceptance", keep=1), tmp_path)
    assert len(done.metrics) == 2 and done.metrics[0]["skipped"] == 0
