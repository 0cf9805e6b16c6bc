"""One module per contestant: how it is opened, publishes and works, with its best settings."""
