"""Cron: texts and policies to moments (`spec`), and the loop that fires them (`dispatcher`)."""
