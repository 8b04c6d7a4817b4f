"""Who is there in the RL phase: policy, critic, reference, teacher, modules and judges, and their parameters."""

import functools
from collections.abc import Callable

from jaxrl_llm.methods import Method
from jaxrl_llm.training.annotate import Annotator
from jaxrl_llm.training.method_state import reference_params
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import TrainState


def separate_critic(run: Run) -> bool:
    """Whether there is a critic that is a network of its own."""
    return run.method.needs_critic and not run.config.critic.shared


def policy_params(run: Run, state: TrainState):
    """The policy's part of the parameters in the RL phase."""
    return state.params["policy"] if separate_critic(run) else state.params


def critic_part(run: Run, state: TrainState):
    """The parameters that values are read with, the policy's where it is its own critic."""
    return state.params["critic"] if separate_critic(run) else state.params


def of_pairs(module: Run) -> bool:
    """Whether the module learns from pairs."""
    return module.config.preference.steps > 0


def module_method(module: Run) -> Method:
    """What the module is trained by."""
    return module.preference_method if of_pairs(module) else module.method


def needs_reference(run: Run) -> bool:
    """Whether anybody needs the parameters with which the policy begins the phase."""
    own = [module_method(module) for module in run.modules.values() if module.network.params is None]
    return any(method.needs_reference for method in (run.method, *own))


def policies_of(run: Run, state: TrainState, reference) -> dict[str, Callable]:
    """All policies that answer under the parameters of the state, as `Io` wants them."""
    policies = run.policies(policy_params(run, state))
    if run.method.needs_reference:
        policies["reference"] = run.sampled_by(run.network, lambda: run.whole(reference_params(state, reference)))
    return policies | {
        name: module.sampled_by(module.network, functools.partial(_module_params, run, name, state))
        for name, module in run.modules.items()
    }


def policies_at_first(run: Run, params) -> dict[str, Callable]:
    """The same before the phase: everybody is the policy with `params`, but for modules with folders of their own."""
    found = run.policies(params)
    found |= {"reference": found["policy"]} if run.method.needs_reference else {}
    begun = {name: (own, own.network.params) for name, own in run.modules.items() if not of_pairs(own)}
    return found | {
        name: found["policy"] if first is None else own.sampled_by(own.network, lambda own=own, first=first: own.whole(first))
        for name, (own, first) in begun.items()
    }


def _module_params(run: Run, name: str, state: TrainState):
    """All parameters of a module."""
    return run.modules[name].whole(state.modules[name].params)


def policy_annotators(run: Run, reference) -> dict[str, Annotator]:
    """Who can score rollouts, at the temperature of their sampling; before its updates the policy is the proximal one."""
    network, temperature = run.network.without_params(), run.config.rl.temperature
    policy = Annotator(network, lambda state: run.whole(policy_params(run, state)), temperature)
    annotators = {"policy": policy, "proximal": policy}
    if run.method.needs_reference:
        annotators["reference"] = Annotator(network, lambda state: run.whole(reference_params(state, reference)), temperature)
    if run.teacher is not None:
        annotators["teacher"] = Annotator(run.teacher.without_params(), lambda state: run.teacher.params, temperature)
    for name, module in run.modules.items():
        params = functools.partial(_module_params, run, name)
        annotators[name] = Annotator(module.network.without_params(), params, temperature)
    for name, (judge, _) in run.judges.items():
        annotators[name] = Annotator(judge.without_params(), lambda state, judge=judge: judge.params, temperature)
    return annotators
