"""Model families: one file a family and a line in the registry."""
