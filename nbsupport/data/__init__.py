"""Images in [0, 1] with labels, from benchmarks or any image folder."""
