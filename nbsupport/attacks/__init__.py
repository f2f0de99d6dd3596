"""PGD, and adaptive attacks through a whole defence."""

from .pgd import pgd as pgd
