"""What adapter_config.json may say, without any network."""

import json

import pytest

from jaxrl_llm.networks import peft

SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 2}, "bias": "none", "revision": None}


def read(tmp_path, **change):
    (tmp_path / peft.CONFIG).write_text(json.dumps(SETTINGS | change))
    return peft.read_settings(tmp_path)


def test_null_is_absent_and_numbers_are_numbers(tmp_path):
    found = read(tmp_path, use_dora=None, target_modules="all-linear", layers_to_transform=3, modules_to_save=None)
    assert "use_dora" not in found and "modules_to_save" not in found and found["alpha_pattern"] == {"q_proj": 2.0}
    assert read(tmp_path, alpha_pattern={r".*\.layers\.[0-9]+\.self_attn\.q_proj": 4})["r"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "r is 0; it must be a whole number from 1"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("nan")}, "not valid JSON .NaN is no number of JSON"),
        ({"lora_alpha": -1}, "lora_alpha is -1; it must be a number above 0"),
        ({"alpha_pattern": {"q": "x"}}, "alpha_pattern.q is 'x'; it must be a number above 0"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern has '\(', which is no regular expression"),
        ({"alpha_pattern": {r"(\w+\.?)+#": 1}}, "alpha_pattern has .*, which may take long; write it with at most 3"),
        ({"use_dora": 1}, "use_dora is 1; it must be true or false"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1; it must be true, false or a name"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]; it must be a string"),
        ({"peft_type": None}, "peft_type=None is not supported; it must be 'LORA'"),
        ({"target_modules": 5}, "target_modules is 5; it must be a string"),
        ({"unknown_option": 0}, "unknown_option=0 is not supported"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(change, message, tmp_path):
    with pytest.raises(ValueError, match=f"{peft.CONFIG}: {message}"):
        read(tmp_path, **change)
