"""Training of classifiers and denoisers."""
