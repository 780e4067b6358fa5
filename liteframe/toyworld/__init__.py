"""The embedded world: rendered videos, questions about them, and a tiny InternVL that answers."""
