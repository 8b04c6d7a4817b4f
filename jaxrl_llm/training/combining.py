"""What `config.network` lays around the policy's network: a second one beside it, a grammar, temperatures by entropy."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import methods
from jaxrl_llm.compose import require
from jaxrl_llm.data import Tokenizer, encode_prompt
from jaxrl_llm.data.grammars import token_table
from jaxrl_llm.networks import Network, combined

# Mixtures of the policy's logits with those of a second network, by their names in `networks.combined`, and the option of each
# that `weight` sets.
MODES = {"geometric": "share", "guided_by": "weight", "residual": "scale", "within_top": "mass"}
REFERENCE = "reference"
ONE = "lay nothing around the network: leave config.network.combined, grammar and entropy_temperature as they are"


def depth(config: ConfigDict) -> int:
    """How many "first" lie around the parameters of the policy's own network."""
    return bool(config.network.combined.mode) + bool(config.network.grammar.behind)


def laid_around(config: ConfigDict) -> bool:
    """Whether the policy is more than its network."""
    return depth(config) > 0 or config.network.entropy_temperature.strength > 0


def check_combination(config: ConfigDict) -> None:
    """Checks the three sections, and that the rest of the configuration goes together with them.

    Raises ValueError: it does not; the message names the key and the mend.
    """
    beside, grammar, heat = (config.network[name] for name in ("combined", "grammar", "entropy_temperature"))
    place = "config.network.combined"
    require(beside.mode in ("", *MODES), f"{place}.mode", beside.mode, f"'' or one of {tuple(MODES)}")
    if not beside.mode and (beside.beside != REFERENCE or beside.weight is not None):
        raise ValueError(f"{place} is {beside.to_dict()}, which would change nothing: set its mode to one of {tuple(MODES)}")
    if bool(grammar.pattern) + bool(grammar.schema) != bool(grammar.behind):
        told = "give a pattern or a schema, and in `behind` the text that prompts end with; or none of them"
        raise ValueError(f"config.network.grammar is {grammar.to_dict()}; {told}")
    try:
        json.loads(grammar.schema or "{}")
    except ValueError as error:
        raise ValueError(f"config.network.grammar.schema is {grammar.schema!r}, which is no JSON: {error}") from error
    require(0 <= heat.strength < 1, "config.network.entropy_temperature.strength", heat.strength, "from 0 to below 1")
    require(heat.width > 0, "config.network.entropy_temperature.width", heat.width, "above 0")
    if not heat.strength and (heat.centre, heat.width) != (0.0, 1.0):
        raise ValueError("config.network.entropy_temperature.centre and width would change nothing: its strength is 0")
    if laid_around(config):
        _check_the_rest(config)


def _check_the_rest(config: ConfigDict) -> None:
    chosen = ((config.preference.steps, config.preference.method), (config.rl.steps, config.method.name))
    valued = [name for steps, name in chosen if steps and methods.get(name).needs_value_head]
    if valued or config.critic.shared:
        told = f"{valued[0]!r} needs" if valued else "config.critic.shared asks for"
        raise ValueError(f"{told} values of the policy's own network, which is not alone; {ONE}")
    if config.network.router.load_balancing or config.network.router.z or config.network.router.replay:
        raise ValueError(f"config.network.router is {config.network.router.to_dict()}, and routers are left out; {ONE}")
    if depth(config) and (config.mesh.actors or config.rounds):
        raise ValueError(f"config.mesh.actors and config.rounds are for one network; {ONE}")
    if config.network.grammar.behind and (config.sft.steps or config.preference.steps):
        raise ValueError(
            "config.network.grammar is for samples: given texts need not match it; set config.sft.steps and "
            "config.preference.steps to 0, and begin with the folder of a run that imitates"
        )


def combine(config: ConfigDict, tokenizer: Tokenizer, network: Network, load: Callable[[str], Network]) -> Network:
    """The policy that samples and learns: the network, with its parameters, and what is laid around it.

    Args:
      config: checked.
      tokenizer: of the texts.
      network: with parameters; a copy of them is the reference.
      load: gives the network of a folder, with its parameters.

    Raises ValueError: the second network does not go with the first one, or no text matches the grammar.
    """
    beside, grammar, heat = (config.network[name] for name in ("combined", "grammar", "entropy_temperature"))
    params, policy = network.params, network.without_params()
    if heat.strength:
        policy = combined.tempered(policy, combined.by_entropy(**heat))
    if beside.mode:
        # A copy, as updates are given the buffers of what trains.
        of_start = beside.beside == REFERENCE
        other = policy.with_params(jax.tree.map(jnp.copy, params)) if of_start else load(beside.beside)
        options = {} if beside.weight is None else {MODES[beside.mode]: beside.weight}
        try:
            mix = getattr(combined, beside.mode)(**options)
            policy = combined.combined(policy, other.without_params(), mix)
        except ValueError as error:
            raise ValueError(f"config.network.combined: {error}") from error
        params = {"first": params, "second": other.params}
    if grammar.behind:
        size = policy.config.vocab_size
        policy = combined.combined(policy, combined.automaton(size), combined.allowed())
        params = {"first": params, "second": {"next": _table(grammar, tokenizer, size)}}
    return policy.with_params(params)


def _table(grammar: ConfigDict, tokenizer: Tokenizer, size: int) -> jax.Array:
    """The automaton that waits for the end of a prompt; no text has the tokens that the network alone knows."""
    schema = json.loads(grammar.schema) if grammar.schema else None
    table = token_table(tokenizer, pattern=grammar.pattern, schema=schema)
    table = np.pad(table, ((0, 0), (0, size - table.shape[1])), constant_values=-1)
    return combined.behind(table, *tokenizer.encode(grammar.behind))


def check_prompts(
    config: ConfigDict, tokenizer: Tokenizer, network: Network, examples: Iterable[dict[str, Any] | Sequence[int]]
) -> None:
    """Checks that the grammar begins where each prompt ends, so that no completion escapes it.

    Args:
      config: of the policy.
      tokenizer: of the prompts.
      network: of `combine`.
      examples: with a prompt each, or ids.

    Raises ValueError: behind a prompt the automaton is not at its beginning.
    """
    if not config.network.grammar.behind:
        return
    table, begin = np.asarray(network.params["second"]["next"]), len(tokenizer.encode(config.network.grammar.behind))
    for example in examples:
        prompt = example
        if isinstance(example, dict):
            prompt = encode_prompt(tokenizer, example["prompt"], tools=example.get("tools"))
        if combined.walked(table, prompt) != begin:
            text = tokenizer.decode(list(prompt), skip_special_tokens=False)
            raise ValueError(
                f"config.network.grammar.behind is {config.network.grammar.behind!r}, and the grammar does not begin where the "
                f"prompt {text!r} ends; give what all prompts end with, and nothing before it has"
            )


def split_first(count: int, params: Any, split: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The parameters that train and the others, of which `split` splits those of the policy's own network.

    Args:
      count: `depth`.
      params: of the whole policy.
      split: `params -> (trained, frozen or None)`.

    Raises ValueError: they are those of fewer networks.
    """
    if not count:
        return split(params)
    if set(params) != {"first", "second"}:
        raise ValueError(f"these are the parameters of one network, and config.network lays another beside it; {ONE}")
    trained, frozen = split_first(count - 1, params["first"], split)
    beside = {"second": params["second"]}
    return {"first": trained}, beside if frozen is None else beside | {"first": frozen}
