"""``rain eval``: several methods answer the same prompts, and independent judges compare them.

From the ground up:

* what is asked and answered: ``rows`` (answers, and their file), ``tasks`` (prompts), ``methods`` (names and
  settings), ``best_of``, ``answering`` (a method answers a task's items), ``runner`` (a run that
  can be stopped at any time);
* how answers are judged: ``wording``, ``judges`` (figures of an answer), ``judging`` (of a run);
* what the report says: ``statistics``, ``plots``, ``page``, ``formatting``, ``study`` (one task's figures),
  ``tables``, ``section``, ``summary``, ``report``;
* ``command``: the command line.
"""
