"""Outside systems, one module each; each needs its extra: `arrow`, `cloud`, `media`."""
