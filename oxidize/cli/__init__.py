"""The command line: one module for each group of commands and for each page that they print."""
