"""How the service is watched: its counters, metrics, status and live page."""
