"""The data that the hosts serve."""
