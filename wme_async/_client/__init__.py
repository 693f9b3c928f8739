"""The client: resources with their paths, and the methods that users call."""
