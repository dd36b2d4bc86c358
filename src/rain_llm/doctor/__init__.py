"""``rain doctor``: test whether a model can judge, and fit question style, calibration and threshold.

Modules, from the lowest layer up: ``items`` (labelled answers), ``measures`` (statistics), ``styles``
(question styles), ``findings`` (result types), ``interview`` (asks the judge), ``examine`` (splits, ranks,
fits), ``report``, ``settings_file`` and ``merging`` (output), ``command`` (the command line).
"""
