"""Code that sets environment variables inside a running kernel, and code that restores what was there before."""

from __future__ import annotations

import json
import re
import shlex

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MODULE = "__import__('sandpty_interpreter.in_kernel', fromlist=['x'])"


def checked(values: object) -> dict[str, str]:
    """As a client gave them. Raises ValueError with a message for people."""
    if not isinstance(values, dict):
        raise ValueError("env_vars is not an object")
    for name, value in values.items():
        if not _NAME.match(name) or not isinstance(value, str) or "\0" in value:
            raise ValueError(f"environment variable {name[:60]!r} has no valid name or value")
    return dict(values)


def setting(language: str, values: dict[str, str], *, keep: bool) -> str:
    """`keep`: for good; otherwise `restoring` undoes it. Empty for a language we cannot do it in."""
    if language == "python":
        return f"{_MODULE}.set_environment({values!r}, keep={keep})"
    if language == "bash":
        lines = []
        for name, value in values.items():
            if not keep:
                lines.append(f"__sandpty_had_{name}=${{{name}+x}}; __sandpty_old_{name}=${{{name}-}}")
            lines.append(f"export {name}={shlex.quote(value)}")
        return "; ".join(lines)
    if language in ("javascript", "typescript"):
        text = json.dumps(values)
        old = "" if keep else "globalThis.__sandptyOld = Object.keys(v).map((k) => [k, Deno.env.get(k)]);"
        return f"{{ const v = {text}; {old} for (const k in v) Deno.env.set(k, v[k]); undefined }}"
    return ""


def restoring(language: str, values: dict[str, str]) -> str:
    """Undoes what `setting` did."""
    if language == "python":
        return f"{_MODULE}.restore_environment()"
    if language == "bash":
        lines = []
        for name in values:
            had, old = f"__sandpty_had_{name}", f"__sandpty_old_{name}"
            lines.append(f'if [ -n "${had}" ]; then export {name}="${old}"; else unset {name}; fi; unset {had} {old}')
        return "; ".join(lines)
    if language in ("javascript", "typescript"):
        return (
            "{ for (const [k, v] of globalThis.__sandptyOld ?? []) "
            "{ if (v === undefined) Deno.env.delete(k); else Deno.env.set(k, v); } undefined }"
        )
    return ""
