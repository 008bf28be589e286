"""Where frames come from: files, folders, the simulated camera."""
