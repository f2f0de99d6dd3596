"""Sliders and the explorer, for JupyterLab."""
