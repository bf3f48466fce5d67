"""What can be done with a terminal: attach to its log, drive its process. Every call takes the agent's unix socket path."""
