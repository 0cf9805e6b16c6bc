"""The dashboard, over an in-memory storage and in process; and in a real browser."""
