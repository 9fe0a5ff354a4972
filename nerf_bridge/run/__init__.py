"""The run directory: its files, checkpoints, events, previews and report."""
