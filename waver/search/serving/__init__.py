"""Serves a web page that searches an index: `waver serve`. Needs FastAPI and uvicorn (the extra `serve`)."""
