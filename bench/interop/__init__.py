"""Files across libraries: what pullback writes must run in the neighbours as it runs here, and theirs here as there.

`python -m bench.interop` writes sets with pullback, lets each neighbour load them in an environment of its own and say
what comes out, lets it write dictionaries of its own with what comes out of those, and loads these. No process imports
two libraries; they meet in files only.
"""
