import pytest

from tests.analysis.recorded import record


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A complete run, Q and K of all four steps stored. Not to be changed."""
    return record(tmp_path_factory.mktemp("analysis") / "run")
