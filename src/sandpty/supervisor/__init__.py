"""The root process: makes, pauses and ends sandboxes; fixed verbs on a 0600 socket, never on the path of a byte."""
