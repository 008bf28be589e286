"""Networks, and how they are made: never imported while frames are processed."""
