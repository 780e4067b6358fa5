"""Compressed-token distillation (CTD): a student learns to emit its teacher's pooled features."""
