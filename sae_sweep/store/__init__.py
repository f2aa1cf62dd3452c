"""Every output path, and how files get there: atomic writes, locks, status and plan files."""
