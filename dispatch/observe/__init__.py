"""Readers of the event records: log lines, and later spans and metrics."""
