"""TLS for sandboxes' host names: certificates that were given, or a local certificate authority's. As root, on disk."""
