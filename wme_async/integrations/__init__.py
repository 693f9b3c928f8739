"""Outside systems, one module each; each needs an extra of its name."""
