"""What is made of a network beforehand, and how like it that is."""
