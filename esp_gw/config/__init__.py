"""The configuration of a person, and the additions of the CLI."""

import os

# Before the first model is made: looking for plug-ins, which the gateway wants none of, takes a
# quarter of a command's start.
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
