"""A server with the interface of OpenAI's over the slot engine, which remembers what it sampled token for token."""

from jaxrl_llm.serving.app import Served, listening, make_app
from jaxrl_llm.serving.scheduler import Scheduler
from jaxrl_llm.serving.sessions import Call, Sessions

__all__ = ["Call", "Scheduler", "Served", "Sessions", "listening", "make_app"]
