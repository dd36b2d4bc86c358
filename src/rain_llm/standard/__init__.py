"""``rain eval standard``: public suites, methods to compare with, and independent judges of harm.

* ``care``: a method to compare with: detect and roll back a fixed buffer, then reflect;
* ``suites``: which prompts of which public file, and whether they are harmful;
* ``turning``, ``refusing``, ``harm``: patterns of refusals, and a classifier of harmful answers.
"""
