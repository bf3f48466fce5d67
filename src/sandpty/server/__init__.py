"""The network-facing program: terminates the dialects, authenticates, translates. Holds no PTY, no log, no output."""
