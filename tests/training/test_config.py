"""The configuration: locked keys, checks across keys, what options and seeds reach."""

import pathlib

import chex
import jax
import numpy as np
import pytest
from training.tiny_runs import METHOD_OPTIONS, opened, tiny_config

from jaxrl_llm import cli, methods
from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.training import build, check_config, default_config
from jaxrl_llm.training.config import FREE_SECTIONS, free_section, method_options

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "__init__.py")


def changed(**values):
    """A possible configuration, changed at dotted paths written with double underscores."""
    config = tiny_config()
    for path, value in values.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


def test_the_default_is_possible():
    check_config(default_config())
    check_config(tiny_config())


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_configs_is_possible(name):
    config = cli.load_config(str(CONFIGS / name), [])
    check_config(config)
    assert config.to_dict().keys() == default_config().to_dict().keys()


def test_the_files_of_the_design_are_there():
    assert {"quickstart.py", "gsm8k.py", "reasoning_gym.py", "sft.py", "ppo.py"} <= set(FILES)


def test_ppo_begins_as_the_quickstart_does():
    quickstart, ppo = (cli.load_config(str(CONFIGS / name), []) for name in ("quickstart.py", "ppo.py"))
    assert ppo.method.name == "ppo" and methods.get("ppo", **method_options(ppo)).needs_critic
    for section in ("network", "task", "sft", "rl", "rewards"):
        assert ppo[section].to_dict() == quickstart[section].to_dict()


def test_two_defaults_share_nothing():
    one, other = default_config(), default_config()
    one.rl.steps = 7
    one.method.options.samples = 3
    assert other.rl.steps != 7 and "samples" not in other.method.options
    assert one.sft.optimizer.learning_rate != one.rl.optimizer.learning_rate


@pytest.mark.parametrize("path", ["nosuch", "rl.nosuch", "rl.optimizer.nosuch", "network.nosuch", "log.nosuch"])
def test_unknown_keys_cannot_be_set(path):
    config = default_config()
    section, _, key = path.rpartition(".")
    with pytest.raises((AttributeError, KeyError), match="nosuch"):
        setattr(free_section(config, section) if section else config, key, 3)
    with pytest.raises((AttributeError, KeyError), match="nosuch"):
        config.update({path.split(".")[0]: {"nosuch": 3}} if section else {"nosuch": 3})


def test_free_sections_take_any_key():
    config = default_config()
    for section in FREE_SECTIONS:
        free_section(config, section).anything = 3
        assert free_section(config, section)["anything"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rl__steps": 0}, r"config\.sft\.steps, config\.preference\.steps and config\.rl\.steps"),
        ({"method__name": "sft"}, r"config\.method\.name is 'sft'.*config\.sft\.steps.*config\.rl\.steps=0"),
        ({"method__name": "nosuch"}, "method 'nosuch' is unknown; known are .*grpo"),
        ({"method__options": {"nosuch": 1}}, "'grpo' has no option 'nosuch'; it takes .*kl_coefficient"),
        ({"method__options": {"kl_coefficient": 0.0, "kl_kind": "k1"}}, "kl_kind='k1' would change nothing"),
        ({"evaluation__samples": 4}, r"config\.evaluation\.samples is 4 at temperature 0.*config\.evaluation\.temperature"),
        ({"rl__temperature": 0.0}, r"config\.rl\.temperature is 0\.0.*above 0"),
        ({"rl__temperature": -1.0}, r"config\.rl.*temperature is -1\.0"),
        ({"rewards__weights": (1.0, 2.0)}, r"config\.rewards\.weights has 2 entries for 1 names"),
        ({"rewards__names": ()}, r"config\.rewards\.names is (empty|\(\))"),
        ({"rl__row_tokens": 15}, r"config\.rl\.row_tokens is 15.* 16 tokens.*task\.max_prompt_tokens \+ rl\.max_new_tokens"),
        ({"rl__prompts": 0}, r"config\.rl\.prompts is 0; it must be at least 1"),
        ({"rl__minibatches": 0}, r"config\.rl\.minibatches is 0"),
        ({"rl__micro_batches": -1}, r"config\.rl\.micro_batches is -1"),
        ({"rl__steps": -1}, r"config\.rl\.steps is -1; it must be at least 0"),
        ({"evaluation__every": -5}, r"config\.evaluation\.every is -5"),
        ({"evaluation__batch": 0}, r"config\.evaluation\.batch is 0"),
        ({"checkpoint__every": 0}, r"config\.checkpoint\.every is 0"),
        ({"checkpoint__keep": 0}, r"config\.checkpoint\.keep is 0"),
        ({"rewards__workers": 0}, r"config\.rewards\.workers is 0"),
        ({"checkpoint__best_metric": "acuracy"}, r"best_metric is 'acuracy', which nothing measures.*'evaluation/accuracy'"),
        ({"rewards__names": ("gsm8k", "gsm8k")}, r"config\.rewards\.names has 'gsm8k' twice"),
        ({"rl__stop_strings": ("",)}, r"config\.rl\.stop_strings has an empty text"),
    ],
)
def test_impossible_values(change, message):
    with pytest.raises(ValueError, match=message):
        check_config(changed(**change))


def test_a_section_has_all_of_its_keys():
    config = default_config()
    config.unlock()
    config.teacher = {}
    with pytest.raises(ValueError, match=r"config\.teacher\.directory is missing; set single keys"):
        check_config(config)
    with config.ignore_type():
        config.teacher = "folder"
    with pytest.raises(ValueError, match=r"config\.teacher is 'folder'; it is a section with the keys \['directory'\]"):
        check_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rl__top_k": 0}, "top_k is 0"),
        ({"rl__top_p": 2.0}, r"top_p is 2\.0"),
        ({"rl__min_p": -0.5}, r"min_p is -0\.5"),
        ({"evaluation__temperature": -1.0}, r"temperature is -1\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32 - 1}, "seed is"),
        ({"rl__optimizer__decay": "exponential"}, "decay is 'exponential'; it must be one of .*cosine"),
        ({"sft__optimizer__decay": "exponential"}, "decay is 'exponential'"),
        ({"method__options": {"samples": 0}}, "samples is 0"),
        ({"rewards__deadline_seconds": 0.0}, "deadline_seconds is 0"),
    ],
)
def test_impossible_values_are_found_before_any_step(change, message):
    """Where a supervised phase comes first, hours would pass before the RL phase found out."""
    with pytest.raises(ValueError, match=message):
        check_config(changed(**change))


def test_supervised_training_alone_does_not_look_at_the_temperature():
    check_config(changed(rl__steps=0, sft__steps=3, rl__temperature=0.0))


@pytest.mark.parametrize("name", ["dr_grpo", "dapo"])
def test_the_longest_completion_is_the_methods_max_length(name):
    config = tiny_config(name)
    assert method_options(config)["max_length"] == 12
    config.method.options.max_length = 40
    assert method_options(config)["max_length"] == 40
    assert "max_length" not in method_options(tiny_config("grpo"))


@pytest.mark.parametrize("name", sorted(METHOD_OPTIONS))
def test_options_reach_the_method(name):
    config = tiny_config(name, **METHOD_OPTIONS[name])
    chosen = dict(methods.get(name, **method_options(config)).options)
    assert chosen["samples"] == 4
    assert all(chosen[option] == value for option, value in METHOD_OPTIONS[name].items())


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.3", 0.3), ("5", 5), ("(1,3)", (1, 3)), ("word", "word"), ("None", None), ("True", True), ("'7'", "7"), ("a=b", "a=b")],
)
def test_free_options_on_the_command_line(text, value):
    config = cli.load_config(str(CONFIGS / "quickstart.py"), [f"--config.method.options.clip_high={text}"])
    found = config.method.options.clip_high
    assert found == value and type(found) is type(value)


def test_overrides_reach_every_kind_of_key():
    overrides = [
        "--config.seed=7",
        "--config.rl.optimizer.learning_rate=1e-3",
        "--config.rl.top_k=20",
        "--config.rl.top_p=0.5",
        "--config.task.options.size=50",
        "--config.task.options.digits=(1,1)",
        "--config.task.test_options.size=9",
        "--config.network.directory=some/where",
        "--config.rewards.names=('arithmetic','exact_match')",
        "--config.rewards.weights=(1.0,0.5)",
        "--config.log.live=false",
        "--config.method.name=rloo",
    ]
    config = cli.load_config(str(CONFIGS / "quickstart.py"), overrides)
    assert (config.seed, config.rl.optimizer.learning_rate, config.rl.top_k, config.rl.top_p) == (7, 1e-3, 20, 0.5)
    assert (config.task.options.size, config.task.options.digits, config.task.test_options.size) == (50, (1, 1), 9)
    assert config.network.directory == "some/where" and config.log.live is False and config.method.name == "rloo"
    assert config.rewards.names == ("arithmetic", "exact_match") and config.rewards.weights == (1.0, 0.5)


def test_columns_can_be_mapped_on_the_command_line():
    overrides = ["--config.task.options.columns.prompt=problem", "--config.task.options.columns.answer=solution"]
    config = cli.load_config(str(CONFIGS / "gsm8k.py"), overrides)
    assert config.task.options.to_dict()["columns"] == {"prompt": "problem", "answer": "solution"}


def test_the_seed_changes_every_key(tmp_path):
    """Parameters, the order of the data, the noise of samples, and the critic's head; nothing else has a seed."""
    with opened(tiny_config("ppo", kl_coefficient=0.0), tmp_path / "0") as run:
        other_config = tiny_config("ppo", kl_coefficient=0.0)
        other_config.seed = 1
        with opened(other_config, tmp_path / "1") as other:
            ours, theirs = run.network.params, other.network.params
            for (path, one), two in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
                constant = np.all(one == one.ravel()[0])
                assert constant or np.any(np.asarray(one) != np.asarray(two)), jax.tree_util.keystr(path)
            (_, first, _), (_, second, _) = (each.draw((0, 0), 20) for each in (run, other))
            assert first != second
            # The same examples and parameters, so that only the noise differs.
            examples, numbers, _ = run.draw((0, 0), 4)
            asked = requests_for(examples, numbers, samples=4)
            noise = [each.io(ours, 0).sample(asked).rollouts.tokens for each in (run, other)]
            assert np.any(noise[0] != noise[1])
            held_out = [each.test_source[0] for each in (run, other)]
            assert held_out[0] == held_out[1]


def test_init_of_a_seed_is_repeatable():
    config = tiny_config()
    tokenizer = build.build_tokenizer(config)
    one, other = (build.build_network(config, tokenizer).params for _ in range(2))
    chex.assert_trees_all_equal(one, other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("memory_gb", -1.0, "memory_gb is -1.0; it must be 0 for no limit"),
        ("timeout_value", 1e7, r"timeout_value is 10000000.0; it must be within"),
    ],
)
def test_settings_of_rewards(name, value, message):
    config = default_config()
    config.rewards[name] = value
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_numbers_that_may_be_none():
    chosen = ["--config.rewards.timeout_value=None", "--config.rl.top_k=5"]
    config = cli.load_config(str(cli.CONFIGS / "quickstart.py"), chosen)
    assert config.rewards.timeout_value is None and config.rl.top_k == 5
