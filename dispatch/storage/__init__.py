"""The persistence hook (`protocol`, `query`) and the storages that ship with it."""
