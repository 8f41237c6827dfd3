"""The writing-style report: measures how much retrieval depends on how a query is written.

queries.py          the queries: the reference caption of each clip, and other versions of it
rewriting/          rules that make other versions of a caption
measures.py         metrics of the ranked clips
families.py         the worst case over versions of one kind
statistics.py       intervals and permutation tests over videos
report.py           the metrics and tests of all runs, as JSON
page.py, plots.py   the report as an HTML page; tables.py for a terminal
"""
