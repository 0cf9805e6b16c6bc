"""The simulation, and the bugs that it must find."""
