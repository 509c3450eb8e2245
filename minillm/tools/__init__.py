"""What is done with the engine beside the course: checks, checkpoints, benches.

On a shared machine absolute times mean nothing, so a bench sets two ways of one work side by side,
in alternation, and prints ratios with their spread.
"""
