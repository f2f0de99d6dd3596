"""How classifiers and denoisers learn."""
