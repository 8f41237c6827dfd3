"""The writing-style report: the same query in other words, and what that does to retrieval.

`rewrites` puts a caption differently and keeps what it says; `controls` keep the words and change what it says; `imported`
reads what people or models rewrote. All of it is text: nothing here needs a video or a network.
"""
