"""A server with the interface of OpenAI's over the slot engine, which remembers what it sampled token for token."""

from jaxrl_llm.serving.app import Served, listening, make_app
from jaxrl_llm.serving.scheduler import Scheduler
from jaxrl_llm.serving.sessions import Call, Sessions
from jaxrl_llm.serving.tool_calls import parser_of

__all__ = ["Call", "Scheduler", "Served", "Sessions", "listening", "make_app", "parser_of"]
