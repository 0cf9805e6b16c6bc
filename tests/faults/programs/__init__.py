"""One scenario each: `python -m faults.programs.NAME FOLDER ...` prints its figures as JSON."""
