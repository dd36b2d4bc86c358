"""``rain eval standard``: public suites, methods to compare, independent judges of harm, and one page.

It stands on ``rain_llm.evals``: its runner, rows, statistics and tables.

* ``care``: a method to compare with: detect and roll back a fixed buffer, then reflect;
* ``suites``: which prompts of which public file, and whether they are harmful.
"""
