import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts none: what is sent to a cluster is made up without Ray."""
