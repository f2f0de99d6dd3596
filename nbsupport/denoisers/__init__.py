"""The paper's denoisers, the simple baselines, and a denoiser before a classifier."""
