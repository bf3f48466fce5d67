"""The asynchronous client: the source of truth; other flavours follow it."""
