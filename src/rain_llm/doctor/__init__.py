"""``rain doctor``: can this model judge answers, asked how, and from which score on?

From the ground up: ``items`` (labelled answers), ``measures`` (what their scores are worth), ``styles``
(ways to ask), ``findings`` (what comes out), ``interview`` (asks), ``examine`` (splits, ranks, fits),
``report`` and ``settings_file`` (what is said and written), ``command`` (the command line).
"""
