"""What is on disk: run folders, checkpoints, ledgers, logs. The readers of headers, logs and folders do without torch."""
