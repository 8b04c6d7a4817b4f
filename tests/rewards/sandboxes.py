"""Whether there are sandboxes here, for tests that run programs."""

import pytest

from jaxrl_llm.rewards import sandbox


def _unavailable() -> str:
    try:
        sandbox.check()
    except ValueError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_unavailable()), reason=_unavailable() or "-")
