"""Observers that ship: traces, metrics, log fields; with the real SDKs."""
