"""Models and the engines that run them, behind one door."""
