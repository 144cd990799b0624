"""The HTTP face: OpenAI's Files and Batches, native jobs, health. Knows nothing of torch or the engine."""
