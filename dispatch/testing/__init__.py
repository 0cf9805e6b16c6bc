"""What users test with: the conformance kit of the storages."""
