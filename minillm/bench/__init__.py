"""What a part of this package costs or gains: two ways of one work side by side, in alternation.

On a shared machine absolute times mean nothing, so every result is a ratio with its spread.
"""
