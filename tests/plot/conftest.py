import pytest

from tests.analysis.recorded import record


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A complete run of 3 layers, 3 heads and 4 steps on 6 x 8 patches. Not to be changed."""
    return record(tmp_path_factory.mktemp("plot") / "run")
