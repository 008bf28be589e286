"""What the commands print, and the exit codes they end with."""
