"""One package per API. A dialect translates; it imports server, terminal and wire, never another dialect."""
