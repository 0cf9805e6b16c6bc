"""The command line, in process and as a person starts it."""
