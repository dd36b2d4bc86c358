"""``rain doctor``: can this model judge answers, asked how, and from which score on?

From the ground up: ``items`` (labelled answers), ``measures`` (what their scores are worth), ``styles``
(ways to ask), ``examine`` (asks them all), ``report`` (says it), ``command`` (the command line).
"""
