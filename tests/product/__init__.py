"""Tests of the product around the code: README, examples, docs and structure."""
