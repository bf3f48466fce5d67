"""The names of the templates we bring."""

from __future__ import annotations

BASE = "base"
CODE_INTERPRETER = "code-interpreter-v1"  # what E2B's and Novita's code interpreter SDKs ask for
HOST_USR = "host-usr"
