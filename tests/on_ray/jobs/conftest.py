import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: jobs are planned without it."""
