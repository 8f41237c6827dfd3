"""The writing-style report: how much does retrieval depend on how the query is written?

queries.py          what is asked: each clip's reference caption, and other versions of it
measures.py         figures of the answers
statistics.py       intervals and tests over videos
report.py           everything of some runs, as JSON
page.py, plots.py   to look at, in a browser; tables.py in a terminal
"""
