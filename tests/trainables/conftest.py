"""Places where things are shared, for the tests of trainables/shared.py."""

import pytest
from shared_things import bucket_in, disk_in


@pytest.fixture
def disk(tmp_path):
    return disk_in(tmp_path)


@pytest.fixture
def bucket(tmp_path):
    return bucket_in(tmp_path)
