"""Tests of the testing kit itself: what it must notice, and what it must let pass."""
