"""The writing-style report: how much does retrieval depend on how the query is written?

queries.py      what is asked: each clip's reference caption, and other versions of it
rewrites.py     versions by rules
controls.py     queries that mean something else
imported.py     versions written by somebody else
measures.py     figures of the answers
statistics.py   intervals and tests over videos
report.py       everything of some runs, as JSON
plots.py, page.py   to look at
"""
