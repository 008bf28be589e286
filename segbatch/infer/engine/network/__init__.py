"""What a network is, where it comes from, and what was found out about it."""
