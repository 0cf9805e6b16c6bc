"""Tests of cron texts, their moments, and the loop that fires them."""
