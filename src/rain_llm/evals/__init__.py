"""``rain eval``: several methods answer the same prompts, and independent judges compare them.

From the ground up: ``rows`` (answers, and the file they are in), ``tasks`` (prompts), ``methods`` (ways to
answer), ``runner`` (a run that can be stopped at any time), ``wording``, ``judges``, ``own_judges`` and
``judging`` (what is thought of the answers), ``statistics`` (how sure that is), ``plots``, ``page``,
``study``, ``summary`` and ``report`` (what it comes to), ``command`` (the command line).
"""
