"""An up-to-date copy of a wiki in a store of your own, from snapshots, the stream, and hourly batches."""
