"""The web page over an index: `waver serve`. Needs FastAPI and uvicorn, the extra `serve`."""
