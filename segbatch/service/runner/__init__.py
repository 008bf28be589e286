"""The service: watched trees in, results beside the raw files, for weeks."""
