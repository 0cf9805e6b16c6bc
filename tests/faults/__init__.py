"""What must be survived: real processes on real files, killed, stopped, starved and lied to."""
