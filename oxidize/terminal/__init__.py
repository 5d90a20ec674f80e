"""Output in a terminal: live pictures, plain lines, tables, durations and sizes."""
