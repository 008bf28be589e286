"""Parts of soak.py: writers, events, the service, and what is checked."""
