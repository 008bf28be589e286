"""What is written beside the raw frames, and how nothing of it is ever half there."""
