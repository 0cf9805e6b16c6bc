"""Behaviour of the engine over the in-memory storage."""
