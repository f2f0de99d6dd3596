"""PGD, and adaptive attacks through a whole defence."""
