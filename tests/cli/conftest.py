"""A pipeline small enough to draw with in a moment."""

import pytest


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A pipeline folder: 5 classes, 4 x 6 patches, 3 layers of 2 heads, random weights."""
    from tests.sampling.conftest import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("cli") / "pipeline", "flow")
