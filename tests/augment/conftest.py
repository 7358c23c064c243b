import pytest
from helpers import varied_pictures


@pytest.fixture(scope="module", params=[(32, 32, 3), (32, 32, 1), (20, 27, 3)], ids=str)
def images(request):
    height, width, channels = request.param
    return varied_pictures(height, width)[..., :channels]
