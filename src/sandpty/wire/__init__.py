"""What is said between programs: frames, errors, supervisor verbs. Pure: no I/O happens here."""
