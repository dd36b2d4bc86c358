"""The RAIN search algorithm and its parts; start reading at ``algorithm.py``."""
