# Generated from sdk/_async by scripts/generate-sync: change it there.
"""The blocking client."""
