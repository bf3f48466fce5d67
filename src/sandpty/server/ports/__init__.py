"""Reaching what sandboxes serve: an HTTP proxy by host name or by routing headers, as E2B's.

A middleware in front of every dialect: a request whose Host is `<port>-<sandbox id>.<domain>`, or whose headers
E2b-Sandbox-Id and E2b-Sandbox-Port name another port than envd's, goes to the service on that port of the sandbox.
docs/reference/ports.md has the details.
"""
