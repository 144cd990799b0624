"""The `pressrun` command, composing the rest."""
