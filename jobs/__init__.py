"""What a batch, a file, a line and a shard are, and where they are kept. Knows nothing of torch or HTTP."""
