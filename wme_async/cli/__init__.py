"""The command line `wme-async`; extra `cli`."""
