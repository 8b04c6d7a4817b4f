"""Where a run stands: a few plain values that travel with every checkpoint."""

import dataclasses
from typing import Any

from jaxrl_llm.data import Cursor

SUPERVISED, PREFERENCE, REINFORCEMENT = "sft", "preference", "rl"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Attributes:
    phase: "sft", "preference" or "rl".
    step: steps done, of all phases.
    phase_step: steps done of this phase.
    cursor: next example of this phase.
    accuracy_before: held-out accuracy before this phase, where it was measured.
    accuracy: the last held-out accuracy; of pairs in a preference phase.
    """

    phase: str
    step: int = 0
    phase_step: int = 0
    cursor: Cursor = Cursor()
    accuracy_before: float | None = None
    accuracy: float | None = None

    def advanced(self, cursor: Cursor) -> "Progress":
        """After one more step."""
        return dataclasses.replace(self, step=self.step + 1, phase_step=self.phase_step + 1, cursor=cursor)

    def entered(self, phase: str) -> "Progress":
        """At the beginning of `phase`."""
        return dataclasses.replace(self, phase=phase, phase_step=0, cursor=Cursor())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"cursor": list(self.cursor)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        return cls(**values | {"cursor": Cursor(*values["cursor"])})
