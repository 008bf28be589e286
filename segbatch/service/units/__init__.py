"""What ``segbatch install-service`` writes: units, snippets for systemd, the example settings."""
