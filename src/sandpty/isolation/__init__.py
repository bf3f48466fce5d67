"""Isolation drivers behind one Protocol: an OCI runtime (crun, runc, runsc) or, by name only, plain processes."""
