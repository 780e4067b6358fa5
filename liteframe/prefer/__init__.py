"""Preference pairs from a Video LLM's own answers: about a video as it is, and about less of it (TPO)."""
