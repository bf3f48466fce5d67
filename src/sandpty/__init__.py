"""sandpty: self-hosted sandboxes whose interactive terminals never lose a byte."""

__version__ = "0.1.0"
