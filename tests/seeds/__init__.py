"""The five systems this package is built from: each method and documented behaviour, on every storage."""
