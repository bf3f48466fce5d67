"""What can be done with a terminal: attach to its log, drive its process. Every call takes an agent socket's path."""
