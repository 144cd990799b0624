"""From a claimed shard to committed lines: the RQ worker, its engine process, prompts and housekeeping."""
