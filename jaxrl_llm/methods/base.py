"""What a named method is, and the table of all of them."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ParamSpec

from jaxrl_llm.compose import Composable, near, require
from jaxrl_llm.controllers import Controller
from jaxrl_llm.estimators import Estimator, chain
from jaxrl_llm.methods.updates import Critic, Evolution, Wrap
from jaxrl_llm.objectives import Objective
from jaxrl_llm.objectives import objective as make_objective
from jaxrl_llm.objectives.candidates import picks_of
from jaxrl_llm.rollouts import Strategy

# What packing always adds.
FROM_ROLLOUTS = frozenset({"source", "turn"})
CERTAINTIES = ("exact", "sketch")


@dataclasses.dataclass(frozen=True)
class Method:
    """A policy-optimisation method as a composition."""

    name: str  # as in `get(name)`
    paper: str  # title, authors and year
    url: str  # of the paper
    strategy: Strategy | None  # which prompts are sampled and what is kept; None for methods that learn from given text
    estimator: Estimator  # rollouts -> rollouts with advantages and weights
    objective: Objective  # scores and batch -> loss
    options: tuple[tuple[str, Any], ...] = ()  # those the method was made with, as pairs
    # pairs of a name in `batch.coefficients` and the controller that sets it at each step
    controllers: tuple[tuple[str, Controller], ...] = ()
    critic: Critic | None = None  # its targets are part of the estimator and its loss is a term of the objective; None for none
    wrap: Wrap = Wrap({})  # what it lays over the optimizer
    evolution: Evolution | None = None  # the update that it has in the place of gradients; None for gradients
    beside: frozenset[str] = frozenset()  # what rewards and facts of a run ask for beside it, such as "reference_samples"

    @property
    def needs(self) -> frozenset[str]:
        """What somebody must compute before the update: "reference_logp", "behavior_value"... and score statistics."""
        strategy, estimator, objective = self.strategy, self.estimator, self.objective
        sampled = getattr(strategy, "provides", frozenset()) | FROM_ROLLOUTS
        asked = getattr(strategy, "annotations", frozenset()) | (estimator.annotations - sampled)
        return self.beside | asked | (objective.annotations - estimator.provides - sampled) | objective.needs

    @property
    def candidates(self) -> frozenset[Composable]:
        """Rules that say which tokens the method looks at beside those that stand there."""
        return picks_of((*self.estimator.parts, *self.objective.terms))

    @property
    def needs_reference(self) -> bool:
        return any(name.startswith("reference_") for name in self.needs) or any(
            dict(rule.options)["of"] == "reference" for rule in self.candidates
        )

    @property
    def needs_teacher(self) -> bool:
        return any(name.startswith("teacher_") for name in self.needs)

    @property
    def needs_critic(self) -> bool:
        return self.critic is not None

    @property
    def needs_value_head(self) -> bool:
        """Whether the trained network itself gives the values rather than a critic beside it.

        They are the rewards of a reward model, or the log-partition function of a flow.
        """
        return "value" in self.needs and not self.needs_critic

    @property
    def is_reward_model(self) -> bool:
        """Whether what it trains gives values alone: its losses look at no log-probability."""
        return self.needs_value_head and not self.objective.reads_logp

    def with_critic(self, critic: Critic) -> "Method":
        """The method with the head and the loss of another critic, whose targets are those of its own."""
        terms = tuple(critic.loss if term == self.critic.loss else term for term in self.objective.terms)
        return dataclasses.replace(self, critic=critic, objective=make_objective(*terms))

    @property
    def learns_from(self) -> str:
        """ "samples" of the policy, or, where nothing is sampled, given "pairs" or "completions"."""
        if self.strategy is not None:
            return "samples"
        return "pairs" if "preference" in self.needs else "completions"

    @property
    def takes_single_answers(self) -> bool:
        """Whether each of its terms takes a rollout by itself, so that answers need not come in pairs."""
        return all(getattr(term.function, "level", "token") == "rollout" for term in self.objective.terms)

    def composition(self) -> str:
        """The method printed as the code that composes it."""
        lines = [f"strategy    = {self.strategy!r}", f"estimator   = {self.estimator!r}", f"objective   = {self.objective!r}"]
        beside = {"controllers": dict(self.controllers), "critic": self.critic, "wrap": self.wrap.layers}
        beside |= {"evolution": self.evolution}
        lines += [f"{name:11} = {part!r}" for name, part in beside.items() if part]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class When:
    """What a convention gives to an option where another option is on, neither None nor 0; where it is off, the default stands.

    So a library's kind of KL belongs to a convention whose coefficient is 0, and comes in with a coefficient of the user's.
    """

    option: str
    value: Any

    def __repr__(self) -> str:
        return f"{self.value!r} with {self.option}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method in the catalogue: the function that composes it, and what is known about it.

    The docstring of `build` begins with one sentence on what the method changes. Behind a blank line "Defaults: ..." says where
    its defaults come from, and "Unconfirmed: ..." what of its formula could not be confirmed.
    """

    # options -> (strategy, estimator, objective), and behind them a dict of controllers, a `Critic`, a `Wrap` or an `Evolution`
    build: Callable[..., tuple]
    paper: str  # title, authors and year
    url: str  # of the paper
    certainty: str  # "exact" where the formula is that of the paper or of its authors' code; "sketch" where part of it is ours
    # options by the name of a library or paper that uses the method's name for another formula; an option may be given as
    # `When(...)`
    conventions: dict[str, dict[str, Any]]


_ENTRIES: dict[str, Entry] = {}


_Options = ParamSpec("_Options")


def method(
    paper: str, url: str, *, certainty: str | None = None, conventions: dict[str, dict[str, Any]] | None = None
) -> Callable[[Callable[_Options, tuple[Any, ...]]], Callable[_Options, Method]]:
    """Decorator: a function of keyword options that returns what `Entry.build` does is a method.

    The arguments are those of `Entry`; "arXiv:2402.03300" is a url too. Without a certainty a method is a "sketch"
    where its docstring says what is unconfirmed, and "exact" elsewhere.
    """
    url = url.replace("arXiv:", "https://arxiv.org/abs/")
    require(certainty in (None, *CERTAINTIES), "certainty", certainty, f"one of {CERTAINTIES}")

    def register(build):
        name = build.__name__
        if name in _ENTRIES:
            raise ValueError(f"there is a method {name!r} already, {_ENTRIES[name].paper}; choose another name")
        usual = "sketch" if _paragraph(inspect.getdoc(build) or "", "Unconfirmed") else "exact"
        _ENTRIES[name] = Entry(build, paper, url, certainty or usual, {"paper": {}} | (conventions or {}))
        return functools.wraps(build)(functools.partial(get, name))

    return register


def get(name: str, *, convention: str = "paper", **options: Any) -> Method:
    """The method of that name.

    Args:
      name: see `names()`.
      convention: whose formula is meant where the field uses one name for several, such as "trl-1.16"; the paper's by
        default. It stands for options; those given beside it come on top. See `conventions_of(name)`.
      **options: of the method; see `options_of(name)`.

    Raises ValueError: an unknown name, convention or option, or an option that would change nothing.

    Example:
      >>> get("dapo", clip_high=0.3).objective
      objective(policy(trust=clip(high=0.3)))
    """
    entry = _entry(name)
    if convention not in entry.conventions:
        known = ", ".join(map(repr, entry.conventions))
        raise ValueError(f"method {name!r} has no convention {convention!r}; it has {known}")
    known = options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = f"it takes {', '.join(known) or 'no options'}"
        raise ValueError(f"method {name!r} has no option {unknown[0]!r}{near(unknown[0], known)}; {takes}")
    chosen = _chosen(known, entry.conventions[convention] | options)
    strategy, estimator, objective, *beside = entry.build(**chosen)
    pairs = tuple(pair for part in beside if isinstance(part, dict) for pair in part.items())
    slots = {"critic": Critic, "wrap": Wrap, "evolution": Evolution}
    found = {slot: part for slot, kind in slots.items() for part in beside if isinstance(part, kind)}
    critic = found.get("critic")
    if critic is not None:
        objective = make_objective(*objective.terms, critic.loss)
        estimator = estimator if critic.targets is None else chain(estimator, critic.targets)
    whole = tuple((known | chosen).items())
    method = Method(name, entry.paper, entry.url, strategy, estimator, objective, whole, pairs, **found)
    _refuse_half_a_critic(method)
    return method


def _refuse_half_a_critic(method: Method) -> None:
    """Refuses values that nobody learns, and averages that nobody keeps."""
    critic = method.critic
    if critic is None and "behavior_value" in method.needs:
        raise ValueError(f"{method.name!r} reads values of a critic; return Critic(loss=value_loss()) behind its objective")
    averaged = any(name.startswith("target_value") for name in method.needs)
    if critic is not None and averaged != (critic.follow is not None):
        mend = "set Critic(follow=0.005)" if averaged else "leave out Critic(follow=...), which nobody reads"
        raise ValueError(f"{method.name!r}: the average of the critic is {'needed' if averaged else 'not needed'}; {mend}")


def _chosen(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options `given` by a convention and the user, those of `When` only where they apply."""
    whole, plain = known | given, {name: value for name, value in given.items() if not isinstance(value, When)}
    applying = {name: value.value for name, value in given.items() if isinstance(value, When) and whole[value.option]}
    return {name: (plain | applying)[name] for name in given if name in plain or name in applying}


def _entry(name: str) -> Entry:
    if name not in _ENTRIES:
        raise ValueError(f"method {name!r} is unknown{near(name, names())}; known are {', '.join(names())}")
    return _ENTRIES[name]


def names() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(sorted(_ENTRIES))


def options_of(name: str) -> dict[str, Any]:
    """Options of a method with their defaults."""
    parameters = inspect.signature(_entry(name).build).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def conventions_of(name: str) -> dict[str, dict[str, Any]]:
    """Conventions of a method by name, each with the options that it stands for."""
    return {convention: dict(options) for convention, options in _entry(name).conventions.items()}


def table() -> list[dict[str, Any]]:
    """One record for each method: name, paper, year, url, what it changes, options, conventions, needs, composition..."""
    return [_describe(name) for name in names()]


def _describe(name: str) -> dict[str, Any]:
    built, entry = get(name), _entry(name)
    text = inspect.getdoc(entry.build)
    return {
        "name": name,
        "paper": built.paper,
        "year": int(re.findall(r"\b(?:19|20)\d\d\b", built.paper)[-1]),
        "url": built.url,
        "summary": text.splitlines()[0],
        "defaults": _paragraph(text, "Defaults"),
        "certainty": entry.certainty,
        "unconfirmed": _paragraph(text, "Unconfirmed"),
        "options": options_of(name),
        "conventions": conventions_of(name),
        "needs": sorted(built.needs),
        "composition": built.composition(),
    }


def _paragraph(text: str, name: str) -> str:
    """What a docstring says behind a line that begins with `name:`, up to the next name or paragraph, on one line."""
    found = re.search(rf"^{name}:(.*?)(?=\n\n|\n(?:Defaults|Unconfirmed):|\Z)", text, re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def reject_inert(condition: bool, name: str, value, reason: str) -> None:
    """Raises ValueError where an option is set that the composition would not read."""
    if condition:
        raise ValueError(f"option {name}={value!r} would change nothing: {reason}; leave it out")
