"""The command line: one module per group of commands. Light to import; what is heavy is imported by the command."""
