"""``rain eval standard``: public suites, methods to compare, independent judges of harm, and one page.

It stands on ``rain_llm.evals``: its runner, rows, statistics and tables. From the ground up:

* ``care``: a method to compare with: detect and roll back a fixed buffer, then reflect;
* ``suites``: which prompts of which public file, and whether they are harmful;
* ``turning``, ``refusing``, ``classifier``, ``harm``: patterns of refusals, a classifier of harm;
* ``reading``: answers for a person to read, without their methods;
* ``judging``: the votes of all judges on the answers of a run;
* ``columns``, ``tables``, ``page``: the figures, as Markdown and HTML.
"""
