"""align-server: one process per machine that owns each alignment model once and batches for all its clients."""
