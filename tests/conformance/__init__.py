"""The vendors' unmodified SDKs against a real server."""
