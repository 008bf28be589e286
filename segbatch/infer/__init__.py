"""From a frame to a verdict and a mask: measures, tiles, engines."""
