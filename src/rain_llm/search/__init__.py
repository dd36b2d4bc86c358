"""The search: the algorithm of the paper and its parts."""
