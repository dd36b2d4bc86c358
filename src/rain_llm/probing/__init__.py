"""Fit probes to labelled answers, and examine them; ``rain doctor`` uses it.

Modules, from the lowest layer up: ``states`` (hidden states of answers, averaged), ``ridge`` (a linear
classifier), ``fitting`` (nested folds and the final probe), ``baselines`` (classifiers of the text alone),
``findings`` (result types), ``examining`` (what a probe is worth), ``report`` (what the terminal shows).
"""
