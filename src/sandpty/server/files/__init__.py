"""What every dialect needs of a sandbox's files: paths, ranges, bodies both ways, watchers. No dialect's words."""
