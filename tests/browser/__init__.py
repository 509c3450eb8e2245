"""Tests in a real browser: the views by themselves, and whole notebooks in JupyterLab."""
