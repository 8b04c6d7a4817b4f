"""What each phase of the loop can give a method, and the refusal of methods that need more."""

from collections.abc import Collection

from jaxrl_llm.data import PAIR
from jaxrl_llm.methods import Method
from jaxrl_llm.types import ROWS_OF, Rollouts

# What a strategy asks for that has the reference policy, or the teacher, answer or score.
SAMPLES = frozenset({"reference_samples", "teacher_samples"})
# Whose statistics an annotation may be: "proximal_logp", "reference_candidate_logp", "teacher_entropy"...
POLICIES = ("proximal", "reference", "teacher")
GOLD_TEXTS, MISMATCHED = "rows_of_gold_texts", "mismatched_ratio"
# What the loop itself adds to rollouts, by what a method learns from: from samples, answers, a critic, and pairs.
GIVEN = {
    "samples": frozenset({"behavior_logp", "answer", "candidates", "behavior_entropy"})
    | {f"{who}_{statistic}" for who in ("behavior", "target") for statistic in ("value", "value_outputs")},
    "pairs": frozenset({"preference", "margin", "candidates", GOLD_TEXTS, MISMATCHED}),
    "completions": frozenset({"candidates"}),
}
# In the preference phase each batch makes one update, so that the policy before it is the one that trains.
_ABSENT = {"pairs": ("proximal_",), "completions": ("reference_",)}


def refuse_missing(method: Method, facts: Collection[str] = ()) -> None:
    """Refuses a method whose inputs nobody gives, rather than run it as another one; `facts` are names that a run has.

    Raises ValueError: the method needs something that its phase cannot make; the message names it.
    """
    material = method.learns_from
    policies = tuple(f"{who}_" for who in POLICIES if f"{who}_" not in _ABSENT.get(material, ()))
    own = {name for name in method.needs if name.startswith(policies)}
    foreign = sorted(method.needs - GIVEN[material] - own - method.objective.needs - set(facts))
    if foreign:
        field = foreign[0].startswith(ROWS_OF) or foreign[0] in Rollouts.__dataclass_fields__
        place = "the rollouts" if field else "the rollouts' extras"
        given = material == "samples" and not foreign[0].startswith(ROWS_OF)
        mend = f"name a function that does in config.rewards.facts.{foreign[0]}" if given else "fill it in a loop of your own"
        raise ValueError(
            f"{method.name!r} needs {foreign[0]!r} in {place}, which this loop cannot make from {material}; "
            f"{mend}, or choose another method"
        )


def texts_of(method: Method) -> tuple[str, ...]:
    """Texts that each example must have for a method of the preference phase: both of a pair, and perhaps a gold one."""
    pair = () if method.takes_single_answers else PAIR
    return pair + (("gold",) if GOLD_TEXTS in method.needs else ())
