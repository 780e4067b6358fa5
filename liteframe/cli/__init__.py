"""The `liteframe` command: one file a sub-command."""
